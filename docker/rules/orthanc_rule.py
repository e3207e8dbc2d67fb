"""Tells marrow-node of each slide that has arrived: for Orthanc's Python plugin ("PythonScript").

Orthanc does not wait: a thread posts, and tries again while the node cannot be reached. What is
still waiting when Orthanc stops is lost; the node's own search of the archive finds it.

The file may have any name but orthanc.py, which is that of the plugin's own module.

Environment of Orthanc: MARROW_NODE_URL=http://node:8080, MARROW_NODE_KEY=mnk_… (role submit).
"""

import json
import os
import queue
import threading
import time
import urllib.error
import urllib.request

import orthanc

URL = os.environ["MARROW_NODE_URL"] + "/jobs"
KEY = os.environ["MARROW_NODE_KEY"]
RETRY_S = 30

waiting = queue.Queue()


def changed(change, level, resource):
    if change == orthanc.ChangeType.STABLE_SERIES:
        waiting.put(resource)


def submit(resource):
    series = json.loads(orthanc.RestApiGet(f"/series/{resource}"))
    # Results of the node come this way too; only slides are work for it.
    if series["MainDicomTags"].get("Modality") != "SM":
        return
    study = json.loads(orthanc.RestApiGet(f"/series/{resource}/study"))
    job = {
        "study_uid": study["MainDicomTags"]["StudyInstanceUID"],
        "series_uid": series["MainDicomTags"]["SeriesInstanceUID"],
        "reason": "Orthanc, stable series",
    }
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(URL, json.dumps(job).encode(), headers)
    with urllib.request.urlopen(request, timeout=10):
        pass


def work():
    while True:
        resource = waiting.get()
        try:
            submit(resource)
        except urllib.error.HTTPError as error:
            again = error.code >= 500 or error.code == 429
            orthanc.LogWarning(f"marrow-node answered {error.code} for series {resource}")
            if again:
                retry(resource)
        except OSError as error:
            orthanc.LogWarning(f"marrow-node cannot be reached for series {resource}: {error}")
            retry(resource)
        except Exception as error:  # the thread has to live: the series may be gone again
            orthanc.LogWarning(f"series {resource} was not sent to marrow-node: {error}")


def retry(resource):
    time.sleep(RETRY_S)
    waiting.put(resource)


threading.Thread(target=work, daemon=True).start()
orthanc.RegisterOnChangeCallback(changed)
