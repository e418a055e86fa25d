"""Answers, case by case, what AWS's toolkit and ours make of a job: variables, arguments, launch command.

Runs in an image that has AWS's toolkit, as `python3 -I /parity/toolkit_server.py` with ours at
/parity/toolkit. A case is a line of JSON on standard input, its answer a line on standard output. Both
toolkits are imported once; each case runs in a fork of its own, from `train` to the moment where a process
would be started: that one call is recorded instead. Python 3.8 or newer, standard library only.
"""

import json
import os
import shutil
import signal
import sys
import time
import traceback

sys.path.insert(0, "/parity")
BASE = "/opt/ml"
SITE = "/tmp/site"
PROGRAMS = "/tmp/programs"
XLA = "/tmp/xla"


FOUND = {}
"""What the toolkit of this fork would start."""


class Launched(BaseException):
    """The toolkit has come as far as it shall; no `except Exception` of it may catch that."""


def launched(words, cwd, capture, checked=True):
    FOUND.update(
        words=list(map(str, words)),
        cwd=str(cwd),
        capture=bool(capture),
        checked=checked,
        environment=dict(os.environ),
    )
    raise Launched


def worker():
    FOUND.update(worker=True, environment=dict(os.environ))
    raise Launched


def prepare_aws(case):
    """AWS's toolkit, with its machine and its network as the case says."""
    from sagemaker_training import environment, mpi, process, smdataparallel

    def check_error(cmd, error_classes, processes_per_host, cwd=None, capture_error=True, **kwargs):
        launched(cmd, cwd, capture_error)

    def create(cmd, error_classes, processes_per_host, cwd=None, env=None, capture_error=False, **kwargs):
        launched(cmd, cwd, capture_error, checked=False)

    process.check_error = check_error
    process.create = create
    environment.num_gpus = lambda: case["gpus"]
    for module in (mpi, smdataparallel):
        module._start_sshd_daemon = lambda: None
        module._can_connect = lambda *_args, **_more: True
    mpi._write_env_vars_to_file = worker

    from sagemaker_training.cli import train

    return train.main


def prepare_ours(case):
    """Ours, likewise."""
    from toolkit import _environment, _mpi, _process, _trainer

    def run(command, *, log, cwd, capture=True, check=True, **_):
        launched(command, cwd, capture, check)

    _process.run = run
    _mpi.lead = lambda command, where, *, capture, log: launched(command.words, where.code_dir, capture)
    _mpi.follow = lambda *_args, **_more: worker()
    _environment._gpus = lambda log: case["gpus"]

    def main():
        sys.exit(_trainer.train())

    return main


SIDES = {"aws": prepare_aws, "ours": prepare_ours}


def tree(case):
    """The case's /opt/ml."""
    shutil.rmtree(BASE, ignore_errors=True)
    config = os.path.join(BASE, "input", "config")
    for directory in (config, os.path.join(BASE, "output", "data"), os.path.join(BASE, "code")):
        os.makedirs(directory)
    for name in case["code"]:
        with open(os.path.join(BASE, "code", name), "w"):
            pass
    for name in ("hyperparameters", "resourceconfig", "inputdataconfig"):
        with open(os.path.join(config, name + ".json"), "w", encoding="utf-8") as file:
            json.dump(case[name], file)


def programs(case):
    """Programs of the image that the case has, such as smddprun."""
    shutil.rmtree(PROGRAMS, ignore_errors=True)
    os.mkdir(PROGRAMS)
    for name in case["programs"]:
        path = os.path.join(PROGRAMS, name)
        with open(path, "w") as file:
            file.write("#!/bin/sh\n")
        os.chmod(path, 0o755)


def waits(_number, frame):
    FOUND["waits"] = "".join(traceback.format_stack(frame))
    raise Launched


def run(side, case, out):
    """In the fork: run the toolkit to its launch, or to its end."""
    signal.signal(signal.SIGUSR1, waits)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    os.environ.update(case["environment"])
    if case["xla"]:
        sys.path.append(XLA)
    try:
        SIDES[side](case)()
    except Launched:
        pass
    except SystemExit as end:  # with AWS's also what a launch becomes on its way through `finally`
        FOUND["code"] = end.code or 0
    except BaseException:
        FOUND["code"] = traceback.format_exc()
    if "environment" in FOUND:
        FOUND.pop("code", None)
    failure = os.path.join(BASE, "output", "failure")
    if os.path.exists(failure):
        with open(failure, encoding="utf-8") as file:
            FOUND["failure"] = file.read()
    with open(out, "w") as file:
        json.dump(FOUND, file)


def await_answer(child, out):
    """What the fork found; a toolkit that waits for something would do so for hours."""
    deadline = time.monotonic() + 10
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGUSR1)  # the fork's handler says where it waits
        time.sleep(0.002)
    with open(out) as file:
        return json.load(file)


def answer(case):
    answers = {}
    programs(case)
    for side in SIDES:
        tree(case)
        out = "/tmp/answer-%s.json" % side
        child = os.fork()
        if child == 0:
            try:
                run(side, case, out)
            finally:
                os._exit(0)
        answers[side] = await_answer(child, out)
    return answers


def main():
    # Every name that a case can have: a toolkit waits a quarter of an hour for one that isn't there.
    with open("/etc/hosts", "a") as file:
        file.writelines("127.0.0.1 algo-%d\n" % number for number in range(1, 21))
    # Without it AWS's toolkit would make a tree of its own below $HOME, and use that.
    os.makedirs(os.path.join(BASE, "input"))
    # AWS's toolkit imports torch to ask for its version, which would make every fork a large one.
    os.makedirs(os.path.join(SITE, "torch"), exist_ok=True)
    for name in ("__init__.py", "version.py"):
        with open(os.path.join(SITE, "torch", name), "w") as file:
            file.write("__version__ = '1.2.3+case'\n")
    sys.path.insert(1, SITE)
    os.makedirs(os.path.join(XLA, "torch_xla", "distributed"), exist_ok=True)
    for name in ("__init__.py", "distributed/__init__.py", "distributed/xla_spawn.py"):
        with open(os.path.join(XLA, "torch_xla", name), "w"):
            pass
    os.environ["PATH"] = PROGRAMS + ":" + os.path.dirname(sys.executable) + ":" + os.environ["PATH"]
    import sagemaker_pytorch_container.training  # noqa: F401
    import sagemaker_training.cli.train  # noqa: F401
    import toolkit._mpi
    import toolkit._trainer  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
