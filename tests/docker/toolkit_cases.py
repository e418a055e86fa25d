"""Jobs that AWS's toolkit and ours must treat alike, and a program that runs one toolkit over all of them.

Run by the Python whose toolkit is meant, Python 3.8 or newer, standard library only:

    python3 toolkit_cases.py train                               # AWS's
    python3 toolkit_cases.py python3 …/toolkit/__main__.py train

Each case is a tree of its own below SAGEMAKER_BASE_DIR. What comes back per case: exit code, failure and
success files, what the toolkit and the script wrote, and what the script saw; a line of JSON per case.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

PROBE = """\
import json, os, sys
path = os.path.join(os.environ["SM_OUTPUT_DATA_DIR"], "probe-%s.json" % os.environ.get("RANK", "0"))
with open(path, "w") as file:
    json.dump({"argv": sys.argv, "environ": dict(os.environ), "cwd": os.getcwd()}, file)
print("probed")
"""

TORCHRUN = '#!/bin/sh\nexec python3 train.py started-by "$0" "$@"\n'
"""Stands in for launchers: what matters is how they are called."""

SHELL_PROBE = 'for word in "$@"; do echo "<$word>"; done; echo "$SM_USER_ARGS"; pwd\n'


def script(body, **hyperparameters):
    """A case whose train.py is `body`."""
    return {"code": {"train.py": body}, "hyperparameters": hyperparameters}


CASES = {
    "nothing": {"code": {"train.py": PROBE}, "needs": "torch"},
    "other torch": {"code": {"train.py": PROBE}},
    # contract: D24, D25, D26, D27, D28, D15, D16
    "hyperparameters": {
        "code": {"train.py": PROBE},
        "hyperparameters": {
            "batch-size": "64",
            "lr": "1e-05",
            "exponent": "1e3",
            "zeros": "007",
            "true": "true",
            "True": "True",
            "null": "null",
            "nan": "NaN",
            "infinity": "-Infinity",
            "quoted": '"adam"',
            "bare": "adam",
            "empty": "",
            "blank": "  ",
            "list": '[1,2,"a",true,null]',
            "dict": '{"b":1,"a":"x y","c":[1,2]}',
            "dot.key": "1",
            "k": "one letter",
            "unicode": '"\u00e9\u4e2d"',
            "cl\u00e9": "1",
            "shell": "a;echo INJECTED $HOME * `id` 'x' \"y\" \\",
            "newline": '"a\\nb"',
            "mp_parameters": '{"partitions":2}',
            "_tuning_objective_metric": "loss",
            "default_user_module_name": "x",
            "sagemaker_job_name": '"the-job"',
            "sagemaker_region": '"eu-west-1"',
            "sagemaker_enable_cloudwatch_metrics": "false",
            "sagemaker_estimator_class_name": '"PyTorch"',
            "sagemaker_estimator_module": '"sagemaker.pytorch.estimator"',
            "big": "123456789012345678901234567890",
            "float": "0.1",
            "minus": "-1",
        },
    },
    "log level": script(PROBE, sagemaker_container_log_level="30"),
    "log level as text": script(PROBE, sagemaker_container_log_level='"INFO"'),
    # contract: C18, C19, D17
    "channels": {
        "code": {"train.py": PROBE},
        "channels": {
            "training": {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"},
            "my-val.x": {"TrainingInputMode": "Pipe", "RecordWrapperType": "None"},
        },
    },
    # contract: H12, C11
    "three hosts": {
        "code": {"train.py": PROBE},
        "hosts": ["localhost", "ip6-localhost", "ip6-loopback"],
        "environment": {"SM_STUDIO_LOCAL_MODE": "true"},
    },
    "old resourceconfig": {  # contract: C9
        "code": {"train.py": PROBE},
        "resources": {"current_host": "localhost", "hosts": ["localhost"]},
    },
    "heterogeneous": {  # contract: C12
        "code": {"train.py": PROBE},
        "resources": {
            "current_host": "localhost",
            "current_instance_type": "ml.c5.xlarge",
            "current_group_name": "data",
            "hosts": ["elsewhere", "localhost"],
            "instance_groups": [
                {"instance_group_name": "data", "instance_type": "ml.c5.xlarge", "hosts": ["localhost"]},
                {"instance_group_name": "gpu", "instance_type": "ml.p3.2xlarge", "hosts": ["elsewhere"]},
            ],
            "network_interface_name": "eth1",
            "topology": [{"hostName": "localhost", "capacityUnitId": "x"}],
        },
        "environment": {"SM_STUDIO_LOCAL_MODE": "TRUE"},
        "hyperparameters": {
            "sagemaker_torch_distributed_enabled": "true",
            "sagemaker_distribution_instance_groups": '["gpu"]',
        },
    },
    "program in the environment": {  # contract: A22, D21
        "code": {"other.py": PROBE},
        "environment": {"SAGEMAKER_PROGRAM": "other.py", "SAGEMAKER_SUBMIT_DIRECTORY": "/elsewhere"},
    },
    "plain toolkit": {  # contract: A21, D30
        "code": {"train.py": PROBE},
        "environment": {"SAGEMAKER_TRAINING_MODULE": None},
        "hyperparameters": {"x": "a b"},
    },
    "plain toolkit fails": {
        "code": {"train.py": "import sys; sys.exit(7)"},
        "environment": {"SAGEMAKER_TRAINING_MODULE": None},
    },
    "native launcher": script(
        "raise ValueError('not captured')", sagemaker_toolkit_native_launcher_enabled="true"
    ),
    "shell script": {  # contract: A23, A25, D31
        "code": {"run.sh": SHELL_PROBE, "requirements.txt": "never-installed-for-a-shell-script\n"},
        "program": "run.sh",
        "hyperparameters": {"x": "a  b;$HOME", "empty": "", "quote": 'it\'s "so"'},
    },
    "shell script without a newline fails": {"code": {"run.sh": "exit 137"}, "program": "run.sh"},
    "command": {  # contract: A23, A25
        "code": {"bin/start": "#!/bin/sh\n" + SHELL_PROBE},
        "program": "bin/start",
        "hyperparameters": {"x": "1"},
    },
    "package": {  # contract: A23, A24
        "code": {
            "setup.py": "import setuptools; setuptools.setup(name='case-package', py_modules=['train'])\n",
            "train.py": PROBE,
        },
        "environment": {
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_NO_INDEX": "1",
            "PIP_BREAK_SYSTEM_PACKAGES": "1",
            "PIP_QUIET": "3",
        },
        "after": ["-m", "pip", "uninstall", "-y", "--break-system-packages", "case-package"],
    },
    "requirements that don't exist": {  # contract: A24
        "code": {"train.py": PROBE, "requirements.txt": "there-is-no-such-package-as-this==1\n"},
        "environment": {"PIP_NO_INDEX": "1", "PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_FIND_LINKS": ""},
    },
    "torchrun": {  # contract: H13, H14
        "code": {"train.py": PROBE},
        "hyperparameters": {
            "sagemaker_torch_distributed_enabled": "true",
            "sagemaker_mpi_num_of_processes_per_host": "2",
            "lr": "0.1",
        },
        "resources": {
            "current_host": "localhost",
            "current_instance_type": "ml.p4d.24xlarge",
            "hosts": ["localhost"],
        },
        "programs": {"torchrun": TORCHRUN},
    },
    "torchrun on three hosts": {
        "code": {"train.py": PROBE},
        "hosts": ["ip6-localhost", "localhost", "other"],
        "environment": {"SM_STUDIO_LOCAL_MODE": "true", "RUN_NEURON_PARALLEL_COMPILE": "1"},
        "hyperparameters": {"sagemaker_torch_distributed_enabled": "true"},
        "programs": {"neuron_parallel_compile": TORCHRUN},
    },
    "neurons": {
        "code": {"train.py": PROBE},
        "resources": {
            "current_host": "localhost",
            "current_instance_type": "ml.trn1.32xlarge",
            "hosts": ["localhost"],
        },
        "hyperparameters": {"sagemaker_torch_distributed_enabled": "true"},
        "programs": {
            "torchrun": TORCHRUN,
            "neuron-ls": '#!/bin/sh\necho \'[{"nc_count":2},{"nc_count":2}]\'\n',
            "smddprun": "#!/bin/sh\n",
        },
    },
    "GPUs": {
        "code": {"train.py": PROBE},
        "programs": {"nvidia-smi": "#!/bin/sh\necho 'GPU 0: x'; echo 'GPU 1: y'; echo other\n"},
    },
    "broken driver": {
        "code": {"train.py": PROBE},
        "programs": {"nvidia-smi": "#!/bin/sh\necho 'GPU 0: x'; exit 9\n"},
    },
    "torchrun of a package": {
        "code": {
            "setup.py": "import setuptools; setuptools.setup(name='case-package', py_modules=['train'])\n",
            "run.sh": "true",
        },
        "program": "run.sh",
        "hyperparameters": {"sagemaker_torch_distributed_enabled": "true"},
    },
    # contract: G13, G14, G15
    "exception": script("print('before')\ndef f():\n    raise ValueError('b\u00e9: 1')\nf()\n"),
    "errors on both streams": script(
        "import os\n"
        "os.write(1, b'before\\n[1]KeyError: in stdout\\nafter it :\\n\\n  after it\\n\\n')\n"
        "os.write(2, b'\\nno name here\\nRuntimeError: twice\\ntwice\\nRuntimeError: twice\\ntwice\\n')\n"
        "os._exit(255)"
    ),
    "each known name": script(
        "import os, sys\n"
        "names = [name for name in dir(__builtins__) if 'Error' in name or 'Exception' in name]\n"
        "os.write(2, '\\n'.join(names + ['ORTE', 'mpirun.real', 'Invalid requirement']).encode())\n"
        "os._exit(1)"
    ),
    "error without a known name": script("import sys; sys.exit('Error: CustomFailure Warning')"),
    "invalid requirement": script("import sys; sys.exit('x Invalid requirement y')"),
    "error name, exit 0": script("print('ImportError: only talk')"),
    "exit code": script("import sys; print('nothing known'); sys.exit(3)"),
    "exit code 137": script("import os; os._exit(137)"),
    "killed": script("import os; os.kill(os.getpid(), 9)"),
    "segmentation fault": script("import os; os.kill(os.getpid(), 11)"),
    "compiler": script("raise RuntimeError('in torch_xla/csrc')"),
    "gloo": script(  # the PyTorch toolkit forgives this one
        "import sys\nsys.stderr.write('RuntimeError\\nterminate called after throwing an instance of '\n"
        "'\\'gloo::EnforceNotMet\\'\\n')\nsys.exit(1)"
    ),
    "binary output": script(
        "import os\nos.write(1, b'\\xff\\xfe\\x00 ok\\n')\nos.write(2, b'OSError \\xff\\n')\nos._exit(1)"
    ),
    "own failure file": script(  # contract: B20
        "import os\nwith open(os.path.join(os.environ['SM_OUTPUT_DIR'], 'failure'), 'w') as file:\n"
        "    file.write('my own words')\nraise SystemExit(4)"
    ),
    "own failure file, exit 0": script(  # contract: G5
        "import os\nwith open(os.path.join(os.environ['SM_OUTPUT_DIR'], 'failure'), 'w') as file:\n"
        "    file.write('my own words')\n"
    ),
    "syntax error": script("def f(:\n"),
    "no such script": {"code": {"other.py": ""}},
    "no such command": {"code": {"other.py": ""}, "program": "start"},
    "no entry point": {"code": {"train.py": PROBE}, "program": None},
    "entry point above": {"code": {"train.py": PROBE}, "program": "../train.py"},
    "entry point with a blank": {"code": {"my train.py": PROBE}, "program": "my train.py"},
    "entry point like an option": {"code": {"-c.py": PROBE}, "program": "-c.py"},
    "other framework": {
        "code": {"train.py": PROBE},
        "environment": {"SAGEMAKER_TRAINING_MODULE": "no.such:main"},
    },
    "broken hyperparameters file": {"code": {"train.py": PROBE}, "raw": {"hyperparameters.json": "{"}},
    "no resourceconfig": {"code": {"train.py": PROBE}, "raw": {"resourceconfig.json": None}},
    "equals sign in a name": script(PROBE, **{"a=b": "1"}),
    "job name that isn't text": script(PROBE, sagemaker_job_name="1"),
    "bad s3 output": script(PROBE, sagemaker_s3_output='"ftp://x"'),
    "many": script(PROBE, **{f"h{number}": "x" * 2000 for number in range(90)}),
}
"""Name → case: code, program ("train.py"), hyperparameters, environment, hosts or resources, channels, raw, programs."""

ENVIRONMENT = {
    "SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main",
    "PYTHONUNBUFFERED": "TRUE",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TRAINING_JOB_NAME": "the-job",
    "AWS_REGION": "us-west-2",
    "LC_ALL": "C.UTF-8",
}


def make_tree(base, case):
    """The case's /opt/ml."""
    config = os.path.join(base, "input", "config")
    for directory in (config, os.path.join(base, "input", "data"), os.path.join(base, "output", "data")):
        os.makedirs(directory)
    os.mkdir(os.path.join(base, "model"))
    for name, content in case["code"].items():
        path = os.path.join(base, "code", name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
    hosts = case.get("hosts", ["localhost"])
    group = {
        "instance_group_name": "homogeneousCluster",
        "instance_type": "ml.c5.xlarge",
        "hosts": hosts[::-1],
    }
    program = case.get("program", "train.py")
    hyperparameters = dict(case.get("hyperparameters", {}))
    if program is not None and "SAGEMAKER_PROGRAM" not in case.get("environment", {}):
        hyperparameters["sagemaker_program"] = json.dumps(program)
        hyperparameters["sagemaker_submit_directory"] = json.dumps(os.path.join(base, "code"))
    files = {
        "hyperparameters.json": json.dumps(hyperparameters),
        "resourceconfig.json": json.dumps(
            case.get("resources")
            or {
                "current_host": hosts[0],
                "current_instance_type": "ml.c5.xlarge",
                "current_group_name": "homogeneousCluster",
                "hosts": sorted(hosts),
                "instance_groups": [group],
                "network_interface_name": "eth0",
            }
        ),
        "inputdataconfig.json": json.dumps(case.get("channels", {})),
    }
    files.update(case.get("raw", {}))
    for name, content in files.items():
        if content is not None:
            with open(os.path.join(config, name), "w", encoding="utf-8") as file:
                file.write(content)


def read(path):
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def normal(text):
    """Without what differs between two runs: times, the interpreter's spelling, the tree's place."""
    if text is None:
        return None
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "", text)
    text = re.sub(r"[^\s\"=:]*/python[0-9.]*(?=[\s\"])", "PYTHON", text)
    text = re.sub(r"(?<=PYTHONPATH=).*", "…", text)
    # Tracebacks of the toolkits themselves go through other files.
    return re.sub(r"(Framework Error: \n).*?\n(?=\S*(Error|Exception)\b)", r"\1", text, flags=re.S)


def start(command, environment, out, err):
    """The exit code of `command`; AWS's `train` in a fork, as importing it takes seconds for each case."""
    if command != ["train"]:
        return subprocess.run(command, env=environment, stdout=out, stderr=err).returncode
    os.environ["SAGEMAKER_BASE_DIR"] = environment["SAGEMAKER_BASE_DIR"]
    from sagemaker_training.cli import train

    child = os.fork()
    if child == 0:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
        os.environ.clear()
        os.environ.update(environment)
        if "PYTHONPATH" in environment:
            sys.path.insert(1, environment["PYTHONPATH"])
        try:
            train.main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code)
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def run_case(case, command):
    base = os.path.join(tempfile.gettempdir(), "toolkit-case")
    shutil.rmtree(base, ignore_errors=True)
    os.mkdir(base)
    make_tree(base, case)
    environment = dict(os.environ, SAGEMAKER_BASE_DIR=base, **ENVIRONMENT)
    os.mkdir(os.path.join(base, "programs"))
    for name, content in case.get("programs", {}).items():
        path = os.path.join(base, "programs", name)
        with open(path, "w") as file:
            file.write(content)
        os.chmod(path, 0o755)
    environment["PATH"] = os.path.join(base, "programs") + ":" + environment["PATH"]
    if "needs" not in case:
        # AWS's toolkit imports torch to ask for its version: seconds, for each case.
        os.makedirs(os.path.join(base, "site", "torch"))
        for name in ("__init__.py", "version.py"):
            with open(os.path.join(base, "site", "torch", name), "w") as file:
                file.write("__version__ = '1.2.3+case'\n")
        environment["PYTHONPATH"] = os.path.join(base, "site")
    for key, value in case.get("environment", {}).items():
        environment.pop(key, None)
        if value is not None:
            environment[key] = value
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        code = start(command, environment, out, err)
        written = []
        for file in (out, err):
            file.seek(0)
            written.append(normal(file.read().decode("utf-8", "replace")))
    if "after" in case:
        subprocess.run([sys.executable] + case["after"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    data = os.path.join(base, "output", "data")
    probes = {probe: json.loads(read(os.path.join(data, probe))) for probe in sorted(os.listdir(data))}
    result = {
        "code": code,
        "failure": normal(read(os.path.join(base, "output", "failure"))),
        "success": read(os.path.join(base, "output", "success")),
        "stdout": written[0],
        "stderr": written[1],
        "probes": probes,
        "tree": sorted(
            os.path.relpath(os.path.join(folder, entry), base)
            for folder, directories, entries in os.walk(os.path.join(base, "output"))
            for entry in directories + entries
        ),
    }
    return json.loads(json.dumps(result).replace(base, "/opt/ml"))


def main():
    command = sys.argv[1:]
    for name, case in CASES.items():
        if "needs" in case and importlib.util.find_spec(case["needs"]) is None:
            continue
        print(json.dumps([name, run_case(case, command)]), flush=True)


if __name__ == "__main__":
    main()
