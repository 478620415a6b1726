"""Random programs on both ends of a path that goes bad in random ways: two processes, a UDP relay between them, and an
oracle that knows what a stream socket may do.

`python3 -m tests.chaos --runs 100 --seed 1`; every run follows from its seed (plan.py), and only real time is not
repeated. What a run is made of: plan.py draws it, relay.py is the path, party.py a process at one end, sides.py one end
of one connection, oracle.py says what was wrong, run.py conducts.
"""
