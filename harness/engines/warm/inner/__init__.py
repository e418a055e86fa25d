"""What runs inside a warm host. Python 3.8 and newer, standard library only.

    process 1: the keeper ── control ── the preloaded interpreter ── its branch with the toolkit
        │                                     ┆ forks                      ┆ forks
        ├── the run's first process  ┄┄┄┄┄┄┄┄ ┆ ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┘
        │       └── a proxy that waits for  ┄┐┆
        └── the script  ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┴┘

`__main__`      starts the keeper
`keeper`        process 1: talks with the harness (`frames`), keeps the interpreters, runs one command at a time
`interpreters`  starts preloaded interpreters and restarts them
`cleaning`      after a run: processes, temporary files, System V objects
`site`          how a preloaded interpreter begins: inside its own `import site`
`zygote`        the preloaded interpreter: imports, then forks
`preload`       imports one module and looks whether a process may be forked afterwards
`said`          what a module wrote when it was imported, until the script imports it
`child`         in the fork: becomes the process that was asked for
`program`       what the interpreter is about to run, and its command line, changed after the fork
`command`       which command lines an interpreter that is already running can still obey
`spawning`      in the toolkit and in torchrun: how they start Python scripts

A preloaded interpreter is a Python that has not yet come to the point where it runs its script: it waits in
the middle of `import site`. A fork of it goes on from there, so the script's frames, its end and its exit code
are those of any Python, and nothing of ours lies below them.
"""
