"""Networks ready to run. The only file that imports ONNX Runtime.

A network's bytes are compared with the SHA-256 of the manifest, and the session is made from those
same bytes.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from models.engines import engine_folder, tensorrt_options, with_engines
from models.errors import InferenceFailed, ManifestInvalid
from models.package import ModelPackage, Precision, Stage, described_network, network_of
from models.records import Float32, UInt8

Device = Literal["auto", "cuda", "tensorrt", "cpu"]

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
_REQUIRED = {"cuda": CUDA_PROVIDER, "tensorrt": TENSORRT_PROVIDER}
# Fixed algorithms in the precision that is asked for: the same slide must give the same coordinates
# twice. Without TF32 the runtime leaves all tensor cores out, those for 16 bits too.
_CUDA_OPTIONS: Mapping[Precision, Mapping[str, str]] = {
    "fp32": {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"},
    "fp16": {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "1"},
}

_Providers = list[str | tuple[str, dict[str, str]]]

_MOST_GPUS = 16
_ERRORS = 3  # severity from which the runtime logs; what it warns of is no site's to mend

# A network of one Relu, to see which provider works.
_PROBE = bytes.fromhex(
    "080812003a330a0c0a0178120179220452656c751201705a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a00100d"
)

# What ONNX Runtime raises: classes without a base of their own, so all that it defines.
_RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(
        value
        for value in vars(runtime_errors).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ),
    RuntimeError,
    ValueError,
)

_log = logging.getLogger(__name__)
# As the runtime's allocator, CUDA and cuBLAS say it.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|Failed to allocate memory|smaller than requested bytes|ALLOC_FAILED", re.I
)


@dataclass(slots=True)
class _BatchSize:
    """Images that are run at a time, on each of several devices.

    Attributes
    ----------
    limit
        What a device's memory holds.
    """

    limit: int
    _largest: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def of(self, images: int) -> int:
        """Return the size that so few images are filled up to: the largest that was run.

        A GPU plans its convolutions anew for another number of images than before.
        """
        with self._lock:
            self._largest = max(self._largest, images)
            return max(images, min(self._largest, self.limit))

    def lower(self, failed: int) -> int:
        """Take half of what failed, unless less is the limit already, and return the limit.

        A device may fail long after another one that was given fewer.
        """
        with self._lock:
            self.limit = min(self.limit, failed // 2)
            return self.limit


@dataclass(frozen=True, slots=True)
class Session:
    """A network ready to run: call it with images, get its outputs by name.

    Attributes
    ----------
    stage
    file
        Name of the network's file, for messages.
    provider
        ONNX Runtime execution provider that runs it, part of what can change a result.
    precision
        Of the network that runs, another part of it.
    runtime
        Name and version of the runtime, for example ``onnxruntime 1.23.2``.
    """

    stage: Stage
    file: str
    provider: str
    precision: Precision
    runtime: str
    _runs: Sequence[Callable[[UInt8], list[NDArray[Any]]]]
    _outputs: tuple[str, ...]
    _size: _BatchSize
    _idle: SimpleQueue[Callable[[UInt8], list[NDArray[Any]]]] = field(
        default_factory=SimpleQueue, init=False, repr=False
    )

    def __post_init__(self) -> None:
        for run in self._runs:
            self._idle.put(run)

    @property
    def parallel(self) -> int:
        """How many threads may call it with profit: one for each GPU."""
        return len(self._runs)

    def __call__(self, image: UInt8) -> Mapping[str, Float32]:
        """Run the network.

        Parameters
        ----------
        image : (N, H, W, 3) uint8
            RGB; N at least 1, H and W multiples of 32 (but for a classifier's crops).

        Returns
        -------
        outputs
            Name → float32 array with first axis N.

        Raises
        ------
        InferenceFailed
            The runtime refused, or an output holds values that are not finite.

        Notes
        -----
        The CPU runs one image at a time: it is no slower, needs less memory, and the result
        cannot depend on which images share a batch. A GPU is given as many each time, the last one
        repeated where there are fewer, and half as many from when its memory did not suffice.
        """
        parts: list[list[NDArray[Any]]] = []
        at = 0
        while at < len(image):
            part = image[at : at + self._size.limit]
            size = self._size.of(len(part))
            missing = np.repeat(part[-1:], size - len(part), axis=0)
            try:
                answers = self._checked(np.concatenate([part, missing]) if len(missing) else part)
            except InferenceFailed as error:
                if size == 1 or not _OUT_OF_MEMORY.search(str(error.__cause__)):
                    raise
                limit = self._size.lower(size)
                _log.warning("%s From now on %d at a time.", error, limit)
                continue
            parts.append([array[: len(part)] for array in answers])
            at += len(part)
        return {
            name: np.concatenate([part[k] for part in parts])
            for k, name in enumerate(self._outputs)
        }

    def _checked(self, image: UInt8) -> list[NDArray[Any]]:
        run = self._idle.get()
        try:
            arrays = run(image)
        except _RUNTIME_ERRORS as error:
            raise InferenceFailed(
                f"Model network {self.file}: {self.provider} could not run it on images of shape"
                f" {image.shape} ({_first_line(error)}); try device 'cpu' or less memory use."
            ) from error
        finally:
            self._idle.put(run)
        for name, array in zip(self._outputs, arrays, strict=True):
            if not np.isfinite(array).all():
                raise InferenceFailed(
                    f"Model network {self.file}: output '{name}' holds values that are not finite;"
                    " the package is defective or the device is."
                )
        return arrays


def open_session(
    package: ModelPackage,
    stage: Stage,
    device: Device,
    threads: int,
    precision: Precision = "fp32",
    engines: Path | None = None,
) -> Session:
    """Load one stage of `package` into ONNX Runtime.

    Parameters
    ----------
    package
    stage
    device
        ``auto`` takes CUDA where it really works, else the CPU; ``cuda`` and ``tensorrt`` refuse
        anything else. Every GPU that the process sees gets a copy of the network.
    threads
        Threads of one operator on the CPU; 0 leaves it to the runtime.
    precision
        What a GPU runs; a CPU always runs the 32-bit network.
    engines
        Where TensorRT keeps the engines that it builds, a folder that no other process uses
        meanwhile; None to build them anew for each session.

    Raises
    ------
    DigestMismatch, ManifestInvalid
        The file changed since it was loaded, its inputs and outputs are not those of the stage, or
        the package has none of this precision.
    InferenceFailed
        The runtime cannot load it, or the device is not there.
    """
    precision = precision_for(device, precision)
    content = network_of(package, stage, precision)
    described = described_network(package, stage, precision)
    file = described.file
    kept = partial(engine_folder, engines if device == "tensorrt" else None, described.sha256)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _ERRORS
    try:
        sessions = [
            with_engines(kept(gpu), partial(_loaded, content, options, providers, device))
            for gpu, providers in enumerate(_providers(device, precision, kept))
        ]
    except _RUNTIME_ERRORS as error:
        raise InferenceFailed(
            f"Model package {package.manifest.name}: ONNX Runtime cannot load {file}"
            f" ({_first_line(error)}); install the package again, or try device 'cpu'."
        ) from error
    provider, sessions = _together(sessions, device)
    _check_graph(package, stage, file, sessions[0])
    outputs = tuple(name for name, _ in _outputs_of(package, stage))
    opened = Session(
        stage=stage,
        file=file,
        provider=provider,
        precision=precision,
        runtime=f"onnxruntime {onnxruntime.__version__}",
        _runs=[partial(_run, session, outputs, kept(gpu)) for gpu, session in enumerate(sessions)],
        _outputs=outputs,
        _size=_BatchSize(1 if provider == CPU_PROVIDER else sys.maxsize),
    )
    _log.info(
        "model %s %s: %s runs on %s (%d) in %s with %s",
        package.manifest.name,
        package.manifest.version,
        stage,
        opened.provider,
        opened.parallel,
        opened.precision,
        opened.runtime,
    )
    return opened


def provider_for(device: Device) -> str:
    """Return the execution provider that `device` comes to on this machine, by trying it.

    Raises
    ------
    InferenceFailed
        ``cuda`` is asked for and does not work here.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS
    try:
        probe = _loaded(_PROBE, options, _providers(device, "fp32")[0], device)
    except _RUNTIME_ERRORS as error:
        raise _unusable(device, _first_line(error)) from error
    return _active(probe, device)


def precision_for(device: Device, precision: Precision) -> Precision:
    """Return the precision that runs on this machine when `precision` is asked for.

    Raises
    ------
    InferenceFailed
        As :func:`provider_for`.
    """
    if precision == "fp16" and provider_for(device) == CPU_PROVIDER:
        return "fp32"
    return precision


def _loaded(content: bytes, options: Any, providers: _Providers, device: Device) -> Any:
    """Load a network; on the CPU where any device will do and a GPU's provider raises.

    The runtime would fall back by itself, and say so on standard output.
    """
    try:
        return onnxruntime.InferenceSession(
            content, options, providers=providers, enable_fallback=0
        )
    except _RUNTIME_ERRORS as error:
        if device != "auto" or providers == [CPU_PROVIDER]:
            raise
        _log.warning("ONNX Runtime cannot use the GPU (%s): the CPU is used.", _first_line(error))
        return onnxruntime.InferenceSession(content, options, providers=[CPU_PROVIDER])


def _run(
    session: Any, outputs: Sequence[str], engines: Path | None, image: UInt8
) -> list[NDArray[Any]]:
    if image.dtype != np.uint8 or not image.flags.c_contiguous:
        raise ValueError(f"images must be contiguous uint8, not {image.dtype}")
    # TensorRT reads and builds engines when it first meets images of a shape.
    return with_engines(engines, partial(_run_bound, session, outputs, image))


def _run_bound(session: Any, outputs: Sequence[str], image: UInt8) -> list[NDArray[Any]]:
    """Run with inputs and outputs bound, so that each is copied once to and from a device."""
    binding = session.io_binding()
    binding.bind_cpu_input("image", image)
    for name in outputs:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    return list(binding.copy_outputs_to_cpu())


def _active(session: Any, device: Device) -> str:
    """Return the provider that a session really got; the runtime falls back without an error."""
    provider = str(session.get_providers()[0])
    if provider != _REQUIRED.get(device, provider):
        raise _unusable(device, f"ONNX Runtime fell back to {provider}")
    return provider


def _unusable(device: Device, why: str) -> InferenceFailed:
    return InferenceFailed(
        f"Model device '{device}' is not usable here, {why};"
        " install the extra 'gpu' and its drivers or set the device to 'cpu' or 'auto'."
    )


def _together(sessions: Sequence[Any], device: Device) -> tuple[str, list[Any]]:
    """Return the provider of the first session, and all sessions that got the same.

    One that fell back where ``auto`` is asked for is left out: some of the images would come from
    another provider than the result says.

    Raises
    ------
    InferenceFailed
        Of ``cuda`` and ``tensorrt``, a session of any GPU fell back.
    """
    active = [_active(session, device) for session in sessions]
    pairs = zip(sessions, active, strict=True)
    return active[0], [session for session, provider in pairs if provider == active[0]]


def _providers(
    device: Device, precision: Precision, engines: Callable[[int], Path | None] = lambda gpu: None
) -> list[_Providers]:
    """Execution providers of each session that is opened: one for the CPU, one for each GPU."""
    available = onnxruntime.get_available_providers()
    if device == "cpu" or CUDA_PROVIDER not in available:
        return [[CPU_PROVIDER]]
    onnxruntime.set_default_logger_severity(_ERRORS)
    onnxruntime.preload_dlls()  # CUDA libraries that came as Python packages
    chosen = []
    for gpu in range(_gpus()):
        options = {**_CUDA_OPTIONS[precision], "device_id": str(gpu)}
        providers: _Providers = [(CUDA_PROVIDER, options), CPU_PROVIDER]
        if device == "tensorrt" and TENSORRT_PROVIDER in available:
            providers.insert(0, (TENSORRT_PROVIDER, tensorrt_options(gpu, engines(gpu))))
        chosen.append(providers)
    return chosen


@cache
def _gpus() -> int:
    """GPUs that the process sees, at least one to try.

    For a number beyond them the runtime raises, or falls back without a word.
    """
    for gpu in range(1, _MOST_GPUS):
        provider: _Providers = [(CUDA_PROVIDER, {"device_id": str(gpu)})]
        try:
            probe = onnxruntime.InferenceSession(_PROBE, providers=provider, enable_fallback=0)
        except _RUNTIME_ERRORS:
            return gpu
        if probe.get_providers()[0] != CUDA_PROVIDER:
            return gpu
    return _MOST_GPUS


# Outputs of each stage: name, and shape with None for a dimension that the image decides.
_OUTPUTS: Mapping[Stage, tuple[tuple[str, tuple[int | Literal["types"] | None, ...]], ...]] = {
    "localiser": (("probability", (None, None, None)),),
    "detector": (
        ("box_px", (None, None, 4)),
        ("score", (None, None)),
        ("type_probability", (None, None, "types")),
    ),
    "classifier": (("type_probability", (None, "types")),),
}


def _check_graph(package: ModelPackage, stage: Stage, file: str, session: Any) -> None:
    """Compare the network's inputs and outputs with what the stage is called with."""
    inputs = {node.name: node for node in session.get_inputs()}
    image = inputs.get("image")
    if set(inputs) != {"image"} or image is None or image.type != "tensor(uint8)":
        raise _not_the_stage(package, stage, file, "must have one input 'image' of type uint8")
    if len(image.shape) != 4 or image.shape[3] != 3 or any(_fixed(d) for d in image.shape[:3]):
        raise _not_the_stage(
            package, stage, file, "input 'image' must be (N, H, W, 3), N, H, W dynamic"
        )
    nodes = {node.name: node for node in session.get_outputs()}
    for name, shape in _outputs_of(package, stage):
        want = tuple(len(package.manifest.types) if d == "types" else d for d in shape)
        node = nodes.get(name)
        if node is None or node.type != "tensor(float)" or not _fits(node.shape, want):
            raise _not_the_stage(
                package,
                stage,
                file,
                f"must have an output '{name}' of type float32 and shape {want}",
            )


def _outputs_of(
    package: ModelPackage, stage: Stage
) -> tuple[tuple[str, tuple[int | Literal["types"] | None, ...]], ...]:
    """Return the outputs that a stage is asked for: no types where a second stage names them."""
    if stage == "detector" and package.manifest.classifier is not None:
        return tuple(each for each in _OUTPUTS[stage] if each[0] != "type_probability")
    return _OUTPUTS[stage]


def _fixed(dimension: object) -> bool:
    return isinstance(dimension, int)


def _fits(shape: Sequence[object], want: Sequence[int | None]) -> bool:
    """Tell whether a declared shape can be `want`; a dynamic dimension can be anything."""
    return len(shape) == len(want) and all(
        expected is None or not _fixed(got) or got == expected
        for got, expected in zip(shape, want, strict=True)
    )


def _not_the_stage(package: ModelPackage, stage: Stage, file: str, demand: str) -> ManifestInvalid:
    return ManifestInvalid(
        f"Model package {package.manifest.name}: field 'stages.{stage}' names {file}, which"
        f" {demand}; export it again."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
