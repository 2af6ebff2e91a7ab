"""A process that holds an answer, and the grader's end of the bridge to it.

Children come from a server that has started no thread and called no kernel. What forks off the tests' own process may wait for
ever for a lock that another thread held there.
"""

import multiprocessing
import socket

import cloudpickle
import torch

from course.classroom import mutants
from course.classroom.bridge import Bridge
from course.classroom.wire import Channel

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])
mutants.load()                                                  # with all that they import: once, and not in each child


def serve(line: socket.socket, answer: bytes) -> None:
    torch.set_num_threads(1)
    bridge = Bridge(Channel(line), strict=False)
    bridge.namespace = {"answer": cloudpickle.loads(answer)}
    bridge.serve()


class Child:
    """`with Child(answer) as bridge`: the answer, a function or a class, lives over there. cloudpickle brings it."""

    def __init__(self, answer, seconds: float = 60):
        mine, theirs = socket.socketpair()
        self.process = PROCESSES.Process(target=serve, args=(theirs, cloudpickle.dumps(answer)), daemon=True)
        self.process.start()
        theirs.close()
        self.line, self.bridge = mine, Bridge(Channel(mine, seconds), strict=True)

    def __enter__(self):
        return self.bridge

    def __exit__(self, *_):
        self.line.close()
        self.process.join(10)
        self.process.kill()                                     # one that waits or turns in circles must not hold up the tests
        self.process.join()
