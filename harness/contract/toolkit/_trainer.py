"""`train`: the order of things from start to exit code."""

from __future__ import annotations

import os
import re
import sys

from . import _entry_point, _launch, _process
from ._environment import Environment, base_directory
from ._errors import ClientError, ExecuteUserScriptError
from ._log import PYTORCH, Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["train"]

_PYTORCH_MODULE = "sagemaker_pytorch_container.training:main"
_GLOO = "terminate called after throwing an instance of 'gloo::EnforceNotMet'"


def train() -> int:
    """Run the job on this host; its exit code (contract: G13)."""
    log = Log()
    try:
        environment = Environment(log)
        _start_intermediate(environment, log)
        module = environment.framework_module
        log.configure(_level(environment.log_level))
        if module == _PYTORCH_MODULE:
            log.info(f"Imported framework {module.split(':')[0]}")
            _pytorch(environment, log)
        elif module:
            _framework(module, log)
        else:
            _run(environment, _launch.choose(environment, log, pytorch=False), capture=False, log=log)
        log.info("Reporting training SUCCESS")
        _write_output("success", "")
        return 0
    except ClientError as error:
        return _failed(str(error), 1, log)
    except Exception as error:
        import traceback

        trace = traceback.format_exc()
        compiler = any(path in trace for path in ("tensorflow/compiler/", "torch_xla/"))
        head = "SMTrainingCompiler Error" if compiler else "Framework Error"  # contract: G16
        number = getattr(error, "errno", 1)
        return _failed(f"{head}: \n{trace}\n{error}", number if isinstance(number, int) else 1, log)


def _failed(message: str, code: int, log: Log) -> int:
    """Tell of the failure; a failure file of the user's own stays (contract: B20)."""
    if not log.configured:
        log.configure(20)
    if os.path.exists(os.path.join(base_directory(), "output", "failure")):
        log.info("Failure file exists. Skipping creation....")
    else:
        _write_output("failure", message)
    log.error("Reporting training FAILURE")
    log.error(message)
    log.error(f"Encountered exit_code {code}")
    return code


def _write_output(name: str, text: str) -> None:
    path = os.path.join(base_directory(), "output", name)
    with open(path, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)


def _level(value: object) -> int:
    """A log level that isn't a number ends the toolkit, with Python's words (contract: D33)."""
    if not isinstance(value, (int, float)):
        raise TypeError(f"'>=' not supported between instances of {type(value).__name__!r} and 'int'")
    return int(value)


def _start_intermediate(environment: Environment, log: Log) -> None:
    """contract: F20"""
    uri = environment.s3_output
    if not uri or os.path.exists(environment.intermediate_dir):
        return
    os.makedirs(os.path.join(environment.intermediate_dir, ".tmp.sagemaker_s3_sync"))
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme not in ("s3", "file"):
        raise ValueError(f"Expecting 's3' scheme, got: {scheme} in {uri}")
    if scheme == "s3":
        log.warning(
            f"Files in {environment.intermediate_dir} are not copied to {uri} while the job runs here."
        )


def _framework(module: str, log: Log) -> None:
    """Another framework's function, of a package that this Python has (contract: A21)."""
    import importlib

    name, function = module.split(":")
    framework = importlib.import_module(name)
    log.info(f"Imported framework {name}")
    getattr(framework, function)()


def _pytorch(environment: Environment, log: Log) -> None:
    """What AWS's PyTorch images do (contract: D22, H2, H9, H11)."""
    if os.environ.get("SM_STUDIO_LOCAL_MODE", "").lower() == "true":
        log.info("Bypass DNS check in case of Studio Local Mode execution.", PYTORCH)
    else:
        log.info("Block until all host DNS lookups succeed.", PYTORCH)
        _launch.await_hosts(environment.hosts)
    os.environ["NCCL_SOCKET_IFNAME"] = environment.interface
    os.environ["NCCL_IB_DISABLE"] = "1"
    os.environ["NCCL_DEBUG"] = "WARN"
    os.environ["MASTER_ADDR"] = environment.master
    os.environ["MASTER_PORT"] = environment.master_port or _launch.MASTER_PORT
    launcher = _launch.choose(environment, log, pytorch=True)
    log.info("Invoking user training script.", PYTORCH)
    capture = not environment.framework_parameters.get("sagemaker_toolkit_native_launcher_enabled")
    if not capture:
        log.info("capture_error is False. Default is True", PYTORCH)
    version = _torch_version()
    if version is None:
        log.warning("PyTorch cannot be found", PYTORCH)
    else:
        os.environ["SM_DLC_TORCH_VERSION"] = version
    try:
        _run(environment, launcher, capture=capture, log=log)
    except ExecuteUserScriptError as error:
        if _GLOO not in str(error):
            raise
        log.warning(f"Known exception: {error}", PYTORCH)


def _torch_version() -> str | None:
    """torch.__version__, without the seconds that importing torch takes."""
    for directory in sys.path:
        path = os.path.join(directory, "torch", "version.py")
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                found = re.search(
                    r"^__version__\s*(?::\s*str\s*)?=\s*['\"]([^'\"]+)", file.read(), re.MULTILINE
                )
            return found.group(1) if found else None
    return None


def _run(environment: Environment, launcher: str | None, *, capture: bool, log: Log) -> None:
    """The script, from its code to its end."""
    code_dir = environment.code_dir
    variables = environment.variables()
    _entry_point.fetch(environment.module_dir, code_dir, log)
    name = _entry_point.validate(environment.entry_point)
    _entry_point.install(name, code_dir, capture=capture, log=log)
    variables["PYTHONPATH"] = environment.python_path()
    shell = environment.shell and capture
    os.environ.update(variables)
    arguments = environment.arguments()
    if launcher in (_launch.MPI, _launch.DATA_PARALLEL):
        _run_ranks(environment, launcher, variables, capture=capture, log=log)
        return
    if launcher == _launch.TORCHRUN:
        words = _launch.torchrun(environment, name, arguments, log)
    elif launcher == _launch.XLA:
        words = _launch.xla_spawn(environment, name, arguments, log)
    else:
        words = _entry_point.command(name, arguments, code_dir, shell=shell)
    _log_invocation(environment.properties(), variables, words, log)
    if launcher is None:
        if os.environ.get("USE_SMDEBUG") == "0":
            log.info("Sagemaker Debugger is not enabled, debugger exceptions will not be imported.")
        else:
            log.info("Exceptions not imported for SageMaker Debugger as it is not installed.")
        log.info("Exceptions not imported for SageMaker TF as Tensorflow is not installed.")
    if shell:
        words = _entry_point.through_shell(words)
    # AWS's runner of torchrun has the two arguments of its `run` in the other order: what is meant to switch
    # the capture off switches the look at the exit code off, and the job ends well whatever happens.
    unchecked = launcher == _launch.TORCHRUN and not capture
    _process.run(words, log=log, cwd=code_dir, capture=capture or unchecked, check=not unchecked)


def _run_ranks(
    environment: Environment, launcher: str, variables: dict[str, str], *, capture: bool, log: Log
) -> None:
    """What mpirun starts: from the master, while the other hosts wait for it (contract: H18, H19, H23)."""
    from . import _mpi

    if environment.current_host != environment.master:
        _mpi.follow(environment, log=log)
        return
    name = _entry_point.validate(environment.entry_point)
    parallel = launcher == _launch.DATA_PARALLEL
    command = _mpi.command(
        environment, name, environment.arguments(), variables, data_parallel=parallel, log=log
    )
    _log_invocation(environment.properties(), variables, command.words, log)
    _mpi.lead(command, environment, capture=capture, log=log)


def _log_invocation(
    properties: dict[str, object], variables: dict[str, str], words: Sequence[str], log: Log
) -> None:
    """contract: G34"""
    import json

    listed = "\n".join(f"{name}={value}" for name, value in variables.items())
    log.info(
        f"Invoking user script\n\nTraining Env:\n\n{json.dumps(properties, indent=4)}\n\n"
        f"Environment variables:\n\n{listed}\n\n"
        f"Invoking script with the following command:\n\n{' '.join(words)}\n\n"
    )
