"""Starts a command in several processes, watches them and ends them together.

The processes are MindSpore's "dynamic cluster": one scheduler, through which the workers find each
other, and the workers. msrun starts the same with the same environment (a test holds them equal),
and on Ascend HCCL is set up by it in the same way. msrun itself is not used, because it does not
watch well (mindspore 2.7.1, parallel/cluster/process_entity/_api.py): with --join=True it polls
without a pause, so that it takes one core for itself, waits for the scheduler after a worker has
died, does not notice the scheduler's death, and leaves everything running when it gets SIGTERM;
with --join=False it does not watch at all.
"""
