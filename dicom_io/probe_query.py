"""What an archive's search (QIDO-RS, PS3.18 §10.6) can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dicom_io.dicom_json import Json, value, values
from dicom_io.errors import PacsAnswerInvalid
from dicom_io.probe_http import Finding, Http, SeriesFound, Verdict

# What archives that answer no search without a key may want, tried in turn: the widest first.
KEYS = (("PatientID", "*"), ("PatientName", "*"), ("StudyDate", "19000101-"))
# Of a search key that an archive does not filter by, one answer suffices to tell.
LOOKED_AT = 20
NO_CONTENT = 204


def needed_keys(http: Http) -> Mapping[str, str]:
    """What a search has to ask for so that it is answered: nothing, or one of ``KEYS``.

    Raises
    ------
    PacsError
        Where the address leads to no archive at all.
    """
    plain = http.reach("studies?limit=1")
    if plain.datasets():
        return {}
    for name, wanted in KEYS:
        answer = http.ask(f"studies?limit=1&{name}={wanted}")
        if answer.datasets() or (answer.ok and not plain.ok):
            return {name: wanted}
    return {}  # there is nothing yet, or no key helps


def probe_search(http: Http) -> Finding:
    """Try the search on its three levels.

    Raises
    ------
    PacsAnswerInvalid
        Where the address leads to something else than an archive.
    """
    first = http.ask(f"studies?limit={LOOKED_AT}")
    # 204 says that nothing matches (PS3.18 §10.6.3.3).
    if first.ok and (first.status == NO_CONTENT or isinstance(first.json(), list)):
        levels = ["studies"]
        levels += [level for level in ("series", "instances") if http.ask(f"{level}?limit=1").ok]
        return Finding("qido", "yes", f"search of {', '.join(levels)}", levels)
    if first.ok:
        raise PacsAnswerInvalid(
            f"The PACS {http.url} answered the first search with something that is not DICOM JSON:"
            " check that the URL is that of a DICOMweb service."
        )
    return Finding("qido", "no", f"a search of studies: {first.said}")


def probe_keys(http: Http) -> Iterator[Finding]:
    """Try the search's keys and its paging."""
    yield from _paging(http)
    for path, keyword, wanted in (
        ("studies?ModalitiesInStudy=SM", "ModalitiesInStudy", "SM"),
        ("series?Modality=SM", "Modality", "SM"),
        ("series?Modality=NONESUCH", "Modality", "NONESUCH"),
    ):
        yield _key(http, path, keyword, wanted)
    yield _include(http)


def find_series(http: Http, modality: str) -> SeriesFound | None:
    """Find a series of a modality: in the list of all, or in those of studies, as is offered."""
    for each in http.ask(f"series?Modality={modality}&limit={LOOKED_AT}").datasets():
        study_uid, series_uid = value(each, "StudyInstanceUID"), value(each, "SeriesInstanceUID")
        if value(each, "Modality") == modality and study_uid and series_uid:
            return SeriesFound(str(study_uid), str(series_uid))
    studies = http.ask(f"studies?ModalitiesInStudy={modality}&limit={LOOKED_AT}").datasets()
    for study_uid in filter(None, (value(each, "StudyInstanceUID") for each in studies)):
        for each in http.ask(f"studies/{study_uid}/series").datasets():
            series_uid = value(each, "SeriesInstanceUID")
            if value(each, "Modality") == modality and series_uid:
                return SeriesFound(str(study_uid), str(series_uid))
    return None


def _paging(http: Http) -> Iterator[Finding]:
    level = next(
        (each for each in ("studies", "series", "instances") if _count(http, each) > 1), None
    )
    if level is None:
        sentence = "not tried: the archive lists fewer than two objects of each level"
        yield Finding("qido.limit", "unknown", sentence)
        yield Finding("qido.offset", "unknown", sentence)
    else:
        pages = [http.ask(f"{level}?limit=1&offset={offset}").datasets() for offset in (0, 1)]
        limited = all(len(page) == 1 for page in pages)
        yield Finding("qido.limit", *_verdict(limited, f"limit=1 on {level}"))
        moved = limited and pages[0] != pages[1]
        yield Finding("qido.offset", *_verdict(moved, f"offset=1 on {level}"))
    fuzzy = http.ask("studies?limit=1&fuzzymatching=true&PatientName=NONESUCH")
    yield Finding("qido.fuzzymatching", *_verdict(fuzzy.ok, f"fuzzymatching=true: {fuzzy.said}"))


def _verdict(works: bool, what: str) -> tuple[Verdict, str]:
    return ("yes", f"{what} works") if works else ("no", f"{what} does not work")


def _count(http: Http, level: str) -> int:
    return len(http.ask(f"{level}?limit=2").datasets())


def _key(http: Http, path: str, keyword: str, wanted: str) -> Finding:
    name = f"qido.{path.replace('?', '.')}"
    answer = http.ask(f"{path}&limit={LOOKED_AT}")
    if not answer.ok:
        return Finding(name, "no", f"{path}: {answer.said}")
    found = answer.datasets()
    if all(wanted in values(each, keyword) for each in found):
        return Finding(name, "yes", f"{path}: {len(found)} found, all match", len(found))
    return Finding(name, "no", f"{path} finds others too: the node compares what it gets")


def _include(http: Http) -> Finding:
    plain, wanted = "instances?limit=1", "NumberOfFrames"
    answer = http.ask(f"{plain}&includefield=SOPClassUID&includefield={wanted}")
    found: list[Json] = answer.datasets()
    if answer.ok and not found:
        return Finding("qido.includefield", "unknown", "not tried: no instance is listed")
    given = bool(found) and value(found[0], "SOPClassUID") is not None
    return Finding(
        "qido.includefield",
        "yes" if given else "no",
        f"includefield on instances: {answer.said}",
    )
