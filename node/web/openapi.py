"""What the job service promises, as OpenAPI 3.1: served at ``/openapi.json``.

DICOMweb and UPS-RS routes are described by PS3.18 and stand in the conformance statement instead.
"""

from __future__ import annotations

import re
from typing import Any, get_args

from flask import Blueprint, Response, jsonify
from pydantic import TypeAdapter

from dicom_io.analysis import Decision, Standing
from models.package import installed_packages
from node import __version__
from node.config import Settings
from node.job import PRIORITIES, STATUSES
from node.stages import FILE_NAMES
from node.web.jobs import MEDIA_TYPES
from node.web.review import ReviewRequest
from node.web.settings import Role
from node.web.submission import UID_PATTERN, JobRequest, RerunRequest

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_MEDIA_TYPES = sorted(set(MEDIA_TYPES.values()))
_ONE_LINE, _SOMETHING = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$", r"\S"
_MAYBE_TEXT: Json = {"type": ["string", "null"]}
_JOB_ID: Json = {
    "name": "job",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "maxLength": 80},
}


def openapi_blueprint(settings: Settings) -> Blueprint:
    """Route ``/openapi.json``."""
    openapi = Blueprint("openapi", __name__)

    @openapi.get("/openapi.json")
    def document() -> Response:
        return jsonify(openapi_document(settings))

    return openapi


def openapi_document(settings: Settings) -> Json:
    """The whole document; it knows the models that are installed and the callbacks allowed."""
    models = [each.manifest.name for each in installed_packages(settings.model.folders)]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "marrow-node",
            "version": __version__,
            "description": "Bone marrow smears in, annotations and differential counts out.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}, {"basic": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key of the node, or a token of its OpenID Connect provider.",
                },
                "basic": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "For browsers: name of a key, and the key as password.",
                },
            },
            "schemas": {
                "Problem": _problem(),
                "Job": _job(),
                "JobRequest": _job_request(models, settings.serve.callbacks),
                "RerunRequest": _rerun_request(models),
                **_review_request(),
            },
        },
    }


def _paths() -> Json:
    job = {"$ref": "#/components/schemas/Job"}
    listed = _object(jobs={"type": "array", "items": job}, offset={"type": "integer"})
    found = _object(
        search=_TEXT,
        status={"enum": list(STATUSES)},
        study_uid=_MAYBE_TEXT,
        series_uid=_MAYBE_TEXT,
        created_ms={"type": "integer"},
        jobs={"type": "array", "items": _TEXT},
        decisions={
            "type": "array",
            "items": _object(series_uid=_TEXT, analyse={"type": "boolean"}, why=_TEXT),
        },
        error=_MAYBE_TEXT,
    )
    paged = (
        _query("limit", {"type": "integer", "minimum": 1, "maximum": 500}),
        _query("offset", {"type": "integer", "minimum": 0, "maximum": 1_000_000_000}),
    )
    queued = {"anyOf": [job, _object(search=_TEXT, links={"type": "object"})]}
    health = _object(status=_TEXT)
    ready = _object(
        status=_TEXT, wrong={"type": "array", "items": _TEXT}, paused={"type": "boolean"}
    )
    return {
        "/healthz": {"get": _open("Whether the process answers", {"200": _json(health)})},
        "/readyz": {
            "get": _open(
                "Whether jobs are taken and worked on",
                {"200": _json(ready), "503": _json(ready, "Not ready, and why")},
            )
        },
        "/metrics": {
            "get": _operation("Metrics for Prometheus", "read", {"200": _content("text/plain")})
        },
        "/openapi.json": {
            "get": _operation("This document", "read", {"200": _json({"type": "object"})})
        },
        "/models": {
            "get": _operation(
                "Model packages that are installed",
                "read",
                {"200": _json(_object(models={"type": "array", "items": {"type": "object"}}))},
            )
        },
        "/jobs": {
            "get": _operation(
                "Jobs, newest first; at most a quarter of a second old",
                "read",
                {"200": _json(listed)},
                parameters=[
                    _query("status", {"enum": list(STATUSES)}),
                    *paged,
                ],
                problems=("400",),
            ),
            "post": _operation(
                "Submit a slide, all slides of a study, or those of an accession number",
                "submit",
                {"202": _json(queued, "Queued, or the job that was there already")},
                body="JobRequest",
                problems=("400", "413", "415", "422", "503"),
            ),
        },
        "/jobs/{job}": {
            "get": _operation(
                "One job with its result",
                "read",
                {"200": _json(job)},
                parameters=[_JOB_ID],
                problems=("404",),
            )
        },
        "/jobs/{job}/events": {
            "get": _operation(
                "Server-sent events: the job's state at each change, until it has ended",
                "read",
                {"200": _content("text/event-stream", schema=_object(event=_TEXT, data=_TEXT))},
                parameters=[_JOB_ID],
                problems=("404", "503"),
            )
        },
        "/jobs/{job}/files/{name}": {
            "get": _operation(
                "A document or picture of a completed job",
                "read",
                {"200": _content(*_MEDIA_TYPES), "304": {"description": "As before"}},
                parameters=[_JOB_ID, _file_name()],
                problems=("404",),
            )
        },
        "/jobs/{job}/retry": {
            "post": _action("Try a failed or cancelled job again", job, ("404", "409", "503"))
        },
        "/jobs/{job}/cancel": {"post": _action("Stop a job", job, ("404", "409", "503"))},
        "/jobs/{job}/rerun": {
            "post": _action(
                "Analyse the same slide again, with its own or another model",
                job,
                ("400", "404", "413", "415", "422", "503"),
                body="RerunRequest",
            )
        },
        "/jobs/{job}/review": {
            "post": _operation(
                "Confirm, correct or withdraw a result; who asks signs",
                "sign",
                {"202": _json(job, "Queued, or the job of the same decision")},
                parameters=[_JOB_ID],
                problems=("400", "404", "409", "413", "415", "422", "503"),
                body="ReviewRequest",
            )
        },
        "/jobs/{job}/revisions": {
            "get": _operation(
                "What became of a job's result, first revision first",
                "read",
                {"200": _json(_object(revisions={"type": "array", "items": _revision()}))},
                parameters=[_JOB_ID],
                problems=("404",),
            )
        },
        "/searches": {
            "get": _operation(
                "Searches that failed, newest first: slides that may have no job",
                "read",
                {
                    "200": _json(
                        _object(
                            searches={"type": "array", "items": found}, offset={"type": "integer"}
                        )
                    )
                },
                parameters=list(paged),
                problems=("400",),
            )
        },
        "/searches/{search}": {
            "get": _operation(
                "Jobs of the slides that a submitted study or accession number has",
                "read",
                {"200": _json(found)},
                parameters=[{**_JOB_ID, "name": "search"}],
                problems=("404",),
            )
        },
    }


def _file_name() -> Json:
    return {
        "name": "name",
        "in": "path",
        "required": True,
        "schema": {"enum": sorted(FILE_NAMES.values())},
    }


def _action(summary: str, answer: Json, problems: tuple[str, ...], body: str = "") -> Json:
    return _operation(
        summary,
        "operate",
        {"202": _json(answer)},
        parameters=[_JOB_ID],
        problems=problems,
        body=body,
    )


def _operation(
    summary: str,
    role: Role,
    responses: Json,
    parameters: list[Json] | None = None,
    problems: tuple[str, ...] = (),
    body: str = "",
) -> Json:
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    told = {
        status: {"description": _PROBLEMS[status], "content": {"application/problem+json": problem}}
        for status in ("401", "403", "429", *problems)
    }
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body}"}}}
    return {
        "summary": summary,
        "description": f"Needs the role {role}.",
        "parameters": parameters or [],
        **({"requestBody": {"required": True, "content": content}} if body else {}),
        "responses": responses | dict(sorted(told.items())),
    }


_PROBLEMS = {
    "400": "The request is malformed",
    "401": "Credentials are missing or not known",
    "403": "The role is missing",
    "404": "There is none of that name",
    "409": "The state of the job does not allow it",
    "413": "The body is larger than the limit",
    "415": "The body is not JSON",
    "422": "The model package or the slide cannot be used",
    "429": "Too many requests in a second",
    "503": "The job database or the work folder cannot be used at present",
}


def _open(summary: str, responses: Json) -> Json:
    return {"summary": summary, "security": [], "responses": responses}


def _query(name: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _json(schema: Json, description: str = "Done") -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _content(*media_types: str, schema: Json = _TEXT) -> Json:
    content = {
        each: {"schema": {"type": "object"} if each.endswith("json") else schema}
        for each in media_types
    }
    return {"description": "Done", "content": content}


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _problem() -> Json:
    """RFC 9457."""
    return _object(type=_TEXT, title=_TEXT, status={"type": "integer"}, detail=_TEXT)


def _job() -> Json:
    return _object(
        job=_TEXT,
        status={"enum": list(STATUSES)},
        tries={"type": "integer", "minimum": 1},
        study_uid=_TEXT,
        series_uid=_TEXT,
        model=_TEXT,
        priority={"enum": ["", *PRIORITIES]},
        reason=_TEXT,
        arrival=_TEXT,
        stage=_MAYBE_TEXT,
        percent={"type": "number", "minimum": 0, "maximum": 100},
        cells={"type": "integer", "minimum": 0},
        created_ms={"type": "integer"},
        updated_ms={"type": "integer"},
        error=_MAYBE_TEXT,
        exit_code={"type": ["integer", "null"]},
        links={"type": "object"},
    )


def _job_request(models: list[str], callbacks: tuple[str, ...]) -> Json:
    """Fields as they are checked, and what has to be given together."""
    schema = TypeAdapter(JobRequest).json_schema()
    fields = schema["properties"]
    fields["model"]["enum"] = ["", *models]
    origins = "|".join(re.escape(origin) for origin in callbacks)
    fields["callback"]["pattern"] = f"^(({origins})(/.*)?)?$" if callbacks else "^$"
    slide = {
        "required": ["study_uid"],
        "properties": {"study_uid": _TEXT} | _none("accession_number"),
    }
    number = {
        "required": ["accession_number"],
        "properties": {"accession_number": _TEXT} | _none("study_uid") | _none("series_uid"),
    }
    schema["oneOf"] = [slide, number]
    return _undescribed(schema)


def _none(name: str) -> Json:
    return {name: {"type": "null"}}


def _rerun_request(models: list[str]) -> Json:
    schema = TypeAdapter(RerunRequest).json_schema()
    schema["properties"]["model"]["enum"] = models
    return _undescribed(schema)


def _revision() -> Json:
    return _object(
        revision={"type": "integer", "minimum": 1},
        standing={"enum": list(get_args(Standing))},
        issued=_TEXT,
        decision={"enum": [None, *get_args(Decision)]},
        name=_MAYBE_TEXT,
        organization=_MAYBE_TEXT,
        reason=_MAYBE_TEXT,
        changes={"type": "object"},
        objects={"type": "object"},
    )


def _review_request() -> Json:
    """The body and what it is made of, side by side; and what each decision needs."""
    kind = TypeAdapter(ReviewRequest)
    schema = kind.json_schema(ref_template="#/components/schemas/{model}")
    parts = schema.pop("$defs", {})
    schema["properties"]["reason"]["pattern"] = _ONE_LINE
    no_source = {"annotation_uid": {"const": ""}} | _none("corrections")
    said = {"type": "string", "pattern": _SOMETHING}
    schema["oneOf"] = [
        {"properties": {"decision": {"const": "confirmed"}} | no_source},
        {
            "required": ["reason"],
            "properties": {"decision": {"const": "withdrawn"}, "reason": said} | no_source,
        },
        {
            "required": ["annotation_uid"],
            "properties": {
                "decision": {"const": "corrected"},
                "annotation_uid": {"type": "string", "pattern": UID_PATTERN},
            }
            | _none("corrections"),
        },
        {
            "required": ["corrections"],
            "properties": {
                "decision": {"const": "corrected"},
                "annotation_uid": {"const": ""},
                "corrections": {"type": "object"},
            },
        },
    ]
    return {"ReviewRequest": _undescribed(schema)} | {
        part: _undescribed(each) for part, each in parts.items()
    }


def _undescribed(schema: Json) -> Json:
    """Without the docstring, which speaks to readers of the code."""
    schema.pop("description", None)
    return schema
