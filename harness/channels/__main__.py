"""`python -m harness.channels FD JOB`: feeds FIFOs, as the file FD says; JOB is only for who lists processes."""

from harness.channels._feeder import main

if __name__ == "__main__":
    main()
