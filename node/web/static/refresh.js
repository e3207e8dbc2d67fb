// Brings the page's content up to date every few seconds while somebody looks at it. Without it the page
// works as well: reload it, or follow "refresh".
const main = document.querySelector("main[data-refresh-s]");
const seconds = Number(main?.dataset.refreshS);

async function refresh() {
  const busy = document.hidden || main.querySelector("form :focus");
  if (!busy) {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.ok) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
      const focused = document.activeElement?.getAttribute("href");
      main.replaceChildren(...fresh.childNodes);
      if (focused) [...main.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
      if (!fresh.dataset.refreshS) return;
    }
  }
  setTimeout(refresh, seconds * 1000);
}

if (seconds) setTimeout(refresh, seconds * 1000);
