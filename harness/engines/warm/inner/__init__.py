"""The program that is a warm host's first process, and what it runs. Python 3.8 and newer, standard library only."""
