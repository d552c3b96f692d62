# ruff: noqa: N806, ARG002 - names and parameters are those of the real bindings
"""A stand-in for the module ``tensorrt`` that offers exactly the names of the real bindings of one release.

Every class below is checked against ``api_VERSION.json`` (``extract.py`` tells where that comes from): reading or
setting a name that the real class does not have raises AttributeError, a call with other parameters TypeError. The
behaviour behind the names is a guess, kept strict: engines run through onnxruntime; the documented rules on uint8, on
profiles and on buffers are enforced.
"""

from __future__ import annotations

import base64
import enum
import functools
import hashlib
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.tensorrt_stand_in.fake_cuda import FakeCuda

FOLDER = Path(__file__).parent
VERSIONS = tuple(sorted(p.stem.removeprefix("api_") for p in FOLDER.glob("api_*.json")))
ELEMENTS = {onnx.TensorProto.UINT8: "UINT8", onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF"}
SUPPORTED_TO_UINT8 = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}


def load_api(version: str) -> dict[str, Any]:
    api: dict[str, Any] = json.loads((FOLDER / f"api_{version}.json").read_text(encoding="utf-8"))
    return api


class Strict:
    """Base of the fake's classes: names outside the real class raise, and calls are compared with its parameters."""

    _names: dict[str, Any]

    def __init_subclass__(cls, **_: Any) -> None:
        cls._names = {}

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("_") and name not in type(self)._names:
            raise AttributeError(f"the real {type(self).__name__} has no {name!r}")
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and type(self)._names.get(name) != "property":
            raise AttributeError(f"the real {type(self).__name__} has no attribute {name!r} to set")
        object.__setattr__(self, name, value)


def _checked(function: Any, owner: str, overloads: list[list[str]]) -> Any:
    """Wrap a method so that only calls which fit one of the real overloads get through."""

    @functools.wraps(function)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        for overload in overloads:
            names = [p.rstrip("=") for p in overload]
            required = {p for p in overload if not p.endswith("=")}
            given = {*names[: len(arguments)], *named}
            if len(arguments) <= len(names) and set(named) <= set(names[len(arguments) :]) and required <= given:
                return function(self, *arguments, **named)
        raise TypeError(f"{owner}.{function.__name__} takes {overloads}, got {arguments} {named}")

    return call


def _finish(kind: Any, api: dict[str, Any]) -> Any:
    """Bind a fake class to the names of the real one."""
    real = api["classes"][kind.__name__]
    kind._names = real
    for name, value in list(vars(kind).items()):
        if callable(value) and isinstance(real.get(name), list) and real[name] and not name.startswith("_"):
            setattr(kind, name, _checked(value, kind.__name__, real[name]))
        if callable(value) and name == "__init__" and real.get("__init__"):
            setattr(kind, name, _checked(value, kind.__name__, real["__init__"]))
    return kind


def _enum(name: str, api: dict[str, Any]) -> Any:
    members = {n: v for n, v in api["classes"][name].items() if isinstance(v, int)}
    return enum.IntEnum(name, members)


def fake_tensorrt(version: str, cuda: FakeCuda, *, build_log: list[dict[str, Any]] | None = None) -> types.ModuleType:
    """Return the stand-in for TensorRT ``version``, running on ``cuda``.

    Args:
        build_log: gets what every build was asked for.
    """
    api = load_api(version)
    log = build_log if build_log is not None else []
    BuilderFlag, TensorIOMode, DataType = (_enum(n, api) for n in ("BuilderFlag", "TensorIOMode", "DataType"))
    Hardware, Creation = (_enum(n, api) for n in ("HardwareCompatibilityLevel", "NetworkDefinitionCreationFlag"))

    class IHostMemory(bytearray):
        @property
        def nbytes(self) -> int:
            return len(self)

    class ILogger(Strict):
        Severity = enum.IntEnum("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4})
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

        def __init__(self) -> None:
            self._made = True

        __getattribute__ = object.__getattribute__  # made to be subclassed in Python, where attributes are free
        __setattr__ = object.__setattr__

        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError

    class Logger(ILogger):
        def __init__(self, min_severity: Any = ILogger.WARNING) -> None:
            self._made = True

        def log(self, severity: Any, msg: str) -> None:
            pass

    class ITensor(Strict):
        def __init__(self, value: Any) -> None:
            self._value = value

        @property
        def name(self) -> str:
            return str(self._value.name)

        @property
        def shape(self) -> tuple[int, ...]:
            return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in self._value.type.tensor_type.shape.dim)

    class INetworkDefinition(Strict):
        def __init__(self, flags: int) -> None:
            self._flags, self._model = flags, None

        @property
        def num_inputs(self) -> int:
            return len(self._model.graph.input)

        @property
        def num_layers(self) -> int:
            return len(self._model.graph.node)

        def get_input(self, index: int) -> Any:
            return ITensor(self._model.graph.input[index])

    class ParserError(Strict):
        def __init__(self, node: Any, index: int, text: str) -> None:
            self._node, self._index, self._text = node, index, text

        def desc(self) -> str:
            return self._text

        def node(self) -> int:
            return self._index

        def node_name(self) -> str:
            return str(self._node.name)

        def node_operator(self) -> str:
            return str(self._node.op_type)

        def code(self) -> Any:
            return 8

    class OnnxParser(Strict):
        def __init__(self, network: Any, logger: Any) -> None:
            assert isinstance(network, INetworkDefinition)
            assert isinstance(logger, ILogger)
            self._network, self._errors = network, []

        def parse(self, model: bytes, path: str | None = None) -> bool:
            proto = onnx.load_from_string(bytes(model))
            inferred = onnx.shape_inference.infer_shapes(proto)
            values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
            kinds = {v.name: v.type.tensor_type.elem_type for v in values}
            kinds.update({t.name: t.data_type for t in proto.graph.initializer})
            for index, node in enumerate(proto.graph.node):
                if node.domain not in ("", "ai.onnx") or node.op_type in ("Unique", "StringNormalizer"):
                    self._errors.append(ParserError(node, index, f"no importer registered for op: {node.op_type}"))
                target = next((a.i for a in node.attribute if a.name == "to"), None)
                to_uint8 = node.op_type == "Cast" and target == onnx.TensorProto.UINT8
                if to_uint8 and kinds.get(node.input[0]) not in SUPPORTED_TO_UINT8:
                    self._errors.append(ParserError(node, index, "uint8 conversions: only from float32, float16"))
            self._network._model = proto
            return not self._errors

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> Any:
            return self._errors[index]

    class IOptimizationProfile(Strict):
        def __init__(self) -> None:
            self._shapes: dict[str, Any] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            if not all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
                raise ValueError("inconsistent")
            self._shapes[input] = [list(min), list(opt), list(max)]

    class ITimingCache(Strict):
        def __init__(self, data: bytes) -> None:
            self._data = data

        def serialize(self) -> Any:
            return IHostMemory(self._data)

    class IBuilderConfig(Strict):
        def __init__(self) -> None:
            self._flags: set[Any] = {BuilderFlag.TF32}
            self._profiles: list[Any] = []
            self._cache: Any = None
            self._hardware = Hardware.NONE
            self._verbosity: Any = None

        @property
        def hardware_compatibility_level(self) -> Any:
            return self._hardware

        @hardware_compatibility_level.setter
        def hardware_compatibility_level(self, value: Any) -> None:
            assert isinstance(value, Hardware)
            self._hardware = value

        @property
        def profiling_verbosity(self) -> Any:
            return self._verbosity

        @profiling_verbosity.setter
        def profiling_verbosity(self, value: Any) -> None:
            self._verbosity = value

        def set_flag(self, flag: Any) -> None:
            assert isinstance(flag, BuilderFlag)
            self._flags.add(flag)

        def clear_flag(self, flag: Any) -> None:
            self._flags.discard(flag)

        def add_optimization_profile(self, profile: Any) -> int:
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            return ITimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            if cache._data and not cache._data.startswith(version.encode()) and not ignore_mismatch:
                return False
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

    class Builder(Strict):
        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, ILogger)
            self._logger = logger

        def create_network(self, flags: int = 0) -> Any:
            return INetworkDefinition(flags)

        def create_builder_config(self) -> Any:
            return IBuilderConfig()

        def create_optimization_profile(self) -> Any:
            return IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            dynamic = [i.name for i in network._model.graph.input if -1 in ITensor(i).shape]
            if dynamic and not (config._profiles and all(d in config._profiles[0]._shapes for d in dynamic)):
                self._logger.log(ILogger.ERROR, "Network has dynamic inputs, but no optimization profile was defined")
                return None
            if b"cilseg-stand-in-too-big" in network._model.SerializeToString():
                self._logger.log(ILogger.ERROR, "Could not find any implementation for node big: out of memory")
                return None
            if config._cache is not None and not config._cache._data:
                config._cache._data = version.encode() + b" timings"
            engine = {
                "tensorrt": version,
                "strongly_typed": bool(network._flags & (1 << Creation.STRONGLY_TYPED)) or version >= "11",
                "flags": sorted(f.name for f in config._flags),
                "hardware": config._hardware.name,
                "profiles": [p._shapes for p in config._profiles],
                "compute_capability": cuda.compute_capability,
                "onnx": base64.b64encode(network._model.SerializeToString()).decode(),
            }
            log.append({**engine, "timing_cache": None if config._cache is None else config._cache._data})
            return IHostMemory(json.dumps(engine).encode())

    class IExecutionContext(Strict):
        def __init__(self, engine: Any) -> None:
            self._engine, self._shape, self._addresses = engine, None, {}
            self._answers: dict[str, Any] | None = None

        def set_input_shape(self, name: str, shape: Any) -> bool:
            low, _, high = self._engine._payload["profiles"][0][name]
            fits = all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
            self._shape = tuple(shape) if fits else None
            return fits

        def get_tensor_shape(self, name: str) -> Any:
            if name == self._engine._input:
                return self._shape
            return self._compute(np.zeros(self._shape, dtype=np.uint8))[name].shape

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert set(self._addresses) == {self._engine._input, *self._engine._outputs}, "buffers are missing"
            shape = self._shape

            def work() -> None:
                image = cuda.view(self._addresses[self._engine._input], int(np.prod(shape)))
                answers = self._compute(np.frombuffer(image, dtype=np.uint8).reshape(shape))
                for name, array in answers.items():
                    cuda.view(self._addresses[name], array.nbytes)[:] = np.ascontiguousarray(array).tobytes()

            return cuda.submit(stream_handle, work)

        def _compute(self, image: Any) -> dict[str, Any]:
            session = self._engine._session
            names = [o.name for o in session.get_outputs()]
            return dict(zip(names, session.run(names, {self._engine._input: image}), strict=True))

    class ICudaEngine(Strict):
        def __init__(self, payload: dict[str, Any]) -> None:
            self._payload = payload
            self._session = onnxruntime.InferenceSession(base64.b64decode(payload["onnx"]))
            graph = onnx.load_from_string(base64.b64decode(payload["onnx"])).graph
            self._values = {v.name: v for v in (*graph.input, *graph.output)}
            self._input, self._outputs = graph.input[0].name, [o.name for o in graph.output]

        @property
        def num_io_tensors(self) -> int:
            return len(self._values)

        def get_tensor_name(self, index: int) -> str:
            return list(self._values)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return TensorIOMode.INPUT if name == self._input else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return DataType[ELEMENTS[self._values[name].type.tensor_type.elem_type]]

        def get_tensor_shape(self, name: str) -> Any:
            return ITensor(self._values[name]).shape

        def create_execution_context(self) -> Any:
            return IExecutionContext(self)

    class Runtime(Strict):
        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, ILogger)
            self._host_code = False

        @property
        def engine_host_code_allowed(self) -> bool:
            return self._host_code

        @engine_host_code_allowed.setter
        def engine_host_code_allowed(self, value: bool) -> None:
            self._host_code = value

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            try:
                payload = json.loads(bytes(serialized_engine))
            except ValueError:
                return None
            compatible = "VERSION_COMPATIBLE" in payload["flags"]
            if compatible and not self._host_code:
                return None
            return ICudaEngine(payload) if compatible or payload["tensorrt"] == version else None

    module = _Module("tensorrt", frozenset(api["module"]))
    kinds = [IHostMemory, ILogger, Logger, ITensor, INetworkDefinition, ParserError, OnnxParser, IOptimizationProfile]
    kinds += [ITimingCache, IBuilderConfig, Builder, IExecutionContext, ICudaEngine, Runtime]
    for kind in kinds:
        module.__dict__[kind.__name__] = kind if kind is IHostMemory else _finish(kind, api)
    for name in ("MemoryPoolType", "ProfilingVerbosity"):
        module.__dict__[name] = _enum(name, api)
    for kind in (BuilderFlag, TensorIOMode, DataType, Hardware, Creation):
        module.__dict__[kind.__name__] = kind
    module.__dict__["__version__"] = version
    return module


class _Module(types.ModuleType):
    """A module that says of every missing name whether the real one has it."""

    def __init__(self, name: str, real: frozenset[str]) -> None:
        super().__init__(name)
        self.__dict__["_real"] = real

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__["_real"]:
            raise NotImplementedError(f"the stand-in has no {name!r}; the real tensorrt does")
        raise AttributeError(f"module 'tensorrt' has no attribute {name!r}")


def hardware_names(version: str) -> set[str]:
    """Return the members of the real HardwareCompatibilityLevel."""
    return {n for n, v in load_api(version)["classes"]["HardwareCompatibilityLevel"].items() if isinstance(v, int)}


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
