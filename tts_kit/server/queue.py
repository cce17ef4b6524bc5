"""What clients ask for and whose turn it is: fair between clients, together where the voice is the same, and never more
waiting than can be said in time."""

import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from tts_kit.generation.generate import Generation
from tts_kit.server import api_errors
from tts_kit.speech.speak import BATCH, Request
from tts_kit.tokens.prompt import Turn

MAX_JOBS = 64
"""Orders that wait or are being said."""
SHARE = 0.75
"""Of these that one client may have, so that there is room for another one."""
QUEUE_TIMEOUT = 120.0
"""Seconds until an order that was not begun is given up."""


@dataclass(eq=False)
class Job:
    """One text to be said for one client."""
    client: str
    voice: str
    lines: list[Request]
    is_streamed: bool
    """Whether sound is sent while it is made, which is done for one order at a time."""
    send: Callable[[np.ndarray | Exception | None], None]
    """Where sound (samples,) goes, or the reason why there is none; at last None."""
    said: int = 0
    """Lines."""
    read: int = 0
    """Tokens of the lines that were said."""
    frames: int = 0
    """Said."""
    ended_with_eos: bool = True
    """Whether every line until now ended by itself."""
    context: list[Turn] = field(default_factory=list)
    """What is heard before the next line."""
    is_begun: bool = False
    is_gone: bool = False
    """Whether nobody listens any more."""

    @property
    def ready(self) -> list[Request]:
        """Lines that can be said now: the first alone, as it is the reference of the rest."""
        return self.lines[self.said:][:1 if self.is_streamed or not self.said else BATCH]

    def count(self, take: Generation, ended_with_eos: bool) -> None:
        """One more line was said."""
        self.said, self.frames, self.ended_with_eos = self.said + 1, self.frames + len(take.codes), self.ended_with_eos and ended_with_eos


class JobQueue:
    """All orders that are not done, by client; asked by many, and looked through by one worker."""

    def __init__(self, most: int = MAX_JOBS, queue_timeout: float = QUEUE_TIMEOUT):
        self.most, self.queue_timeout = most, queue_timeout
        self.pace = 1.0
        """Seconds for an order's turn, as of late."""
        self._clients: OrderedDict[str, deque[Job]] = OrderedDict()
        self._changed = threading.Condition()
        self._served: list[Job] = []
        self._closed = False

    def __len__(self) -> int:
        return sum(map(len, list(self._clients.values())))

    def put(self, order: Job) -> None:
        """Take an order on, or refuse it because there are too many."""
        with self._changed:
            own = self._clients.get(order.client, ())
            if self._closed:
                raise api_errors.busy("the server is being stopped.", 10)
            if len(self) >= self.most or len(own) >= max(1, round(SHARE * self.most)):
                whose = f"{len(self)} requests" if len(self) >= self.most else f"{len(own)} requests of yours"
                raise api_errors.busy(f"{whose} wait to be said, which is all that may.",
                                    len(self) * self.pace)
            self._clients.setdefault(order.client, deque()).append(order)
            self._changed.notify()

    def leave(self, order: Job) -> None:
        """Done, failed, or nobody listens."""
        order.is_gone = True
        with self._changed:
            own = self._clients.get(order.client)
            if own and order in own:
                own.remove(order)
                if not own:
                    del self._clients[order.client]

    def take(self) -> list[Job]:
        """Wait for the next order; with it come those that can be said at once. Nothing, when closed."""
        with self._changed:
            self._to_the_end()
            while not self._clients and not self._closed:
                self._changed.wait()
            if self._closed:
                return []
            first = next(self._in_turn())
            company = [first] if first.is_streamed else [
                order for order in self._in_turn() if not order.is_streamed and order.voice == first.voice][:BATCH]
            self._served = company
            for order in company:
                order.is_begun = True
            return company

    def give_up(self, order: Job) -> None:
        """Refuse an order whose patience is over, if it was not begun."""
        with self._changed:
            if order.is_begun or order.is_gone:
                return
            self.leave(order)
        order.send(api_errors.busy(f"this was not begun in {self.queue_timeout:g} s.", len(self) * self.pace))

    def close(self) -> None:
        """No more orders; whoever waits for one is told, and it is not said to the end."""
        with self._changed:
            self._closed = True
            waiting = list(self._in_turn())
            self._changed.notify_all()
        for order in waiting:
            self.leave(order)
            order.send(api_errors.busy("the server is being stopped.", 10))

    def _in_turn(self) -> Iterator[Job]:
        """One of every client, then the second ones."""
        queues = list(self._clients.values())
        for rank in itertools.takewhile(lambda rank: any(len(queue) > rank for queue in queues), itertools.count()):
            yield from (queue[rank] for queue in queues if len(queue) > rank)

    def _to_the_end(self) -> None:
        """Who has had a turn stands behind those who came meanwhile, among clients and among a client's own."""
        for order in self._served:
            own = self._clients.get(order.client)
            if own:
                self._clients.move_to_end(order.client)
                if order in own:
                    own.remove(order)
                    own.append(order)


def next_batch(company: list[Job]) -> list[tuple[Job, Request]]:
    """Which lines are said together: one of every order, then the second ones, as long as there is room."""
    lines = [[(order, line) for line in order.ready] for order in company]
    ranked = itertools.zip_longest(*lines)
    return [each for rank in ranked for each in rank if each][:BATCH]
