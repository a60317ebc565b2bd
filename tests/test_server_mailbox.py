"""How the engine's events come to the event loop, and how it watches the time."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import MagicMock

import pytest

from airllm.engine.requests import Event, Handle, Piece, PromptProgress, Request, TokenLogprob
from airllm.server.alarm import Alarm
from airllm.server.mailbox import Doorbell, Mailbox, SlowReaderError

# ---- the mailbox ---------------------------------------------------------------------------------


def handle() -> Handle:
    return Handle(1, Request([1]), [1], lambda *_: None)


def put(mailbox: Mailbox, own: Handle, *events: Event) -> None:
    """As the scheduler does in a pass."""
    for event in events:
        mailbox.put(own, event)
    mailbox.doorbell.ring()


def test_a_mailbox_hands_over_all_that_is_there_in_order() -> None:
    async def run() -> None:
        mailbox, own = Mailbox(Doorbell(asyncio.get_running_loop())), handle()
        events = [Piece(0, str(at), (at,)) for at in range(5)]
        threading.Thread(target=put, args=(mailbox, own, *events)).start()
        found: list[Any] = []
        while len(found) < 5:
            found += await mailbox.take(5.0)
        assert found == [(own, event) for event in events]
        start = time.perf_counter()
        assert await mailbox.take(0.01) == []
        assert time.perf_counter() - start < 5

    asyncio.run(run())


def test_a_mailbox_keeps_the_last_of_the_prompts_progress() -> None:
    async def run() -> None:
        mailbox, own = Mailbox(Doorbell(asyncio.get_running_loop())), handle()
        for done in range(1000):
            mailbox.put(own, PromptProgress(done, 1000))
        assert await mailbox.take(1.0) == [(own, PromptProgress(999, 1000))]

    asyncio.run(run())


def test_a_mailbox_keeps_the_logprobs_of_the_prompt() -> None:
    async def run() -> None:
        mailbox, own = Mailbox(Doorbell(asyncio.get_running_loop())), handle()
        events = [PromptProgress(1, 9, 0, (TokenLogprob(1, -1.0),)), PromptProgress(9, 9)]
        for event in events:
            mailbox.put(own, event)
        assert [event for _, event in await mailbox.take(1.0)] == events

    asyncio.run(run())


def test_who_is_woken_for_what_was_taken_before_waits_on() -> None:
    async def run() -> None:
        mailbox, own = Mailbox(Doorbell(asyncio.get_running_loop())), handle()
        taking = asyncio.create_task(mailbox.take(5.0))
        await asyncio.sleep(0)
        mailbox.wake()  # by a bell that was rung for what `take` has given before
        for _ in range(4):
            await asyncio.sleep(0)
        assert not taking.done()
        put(mailbox, own, Piece(0, "y", (2,)))
        assert len(await taking) == 1

    asyncio.run(run())


def test_events_are_put_and_taken_under_one_lock() -> None:
    async def run() -> None:
        mailbox, lock = Mailbox(Doorbell(asyncio.get_running_loop())), MagicMock()
        mailbox._lock = lock
        mailbox.put(handle(), Piece(0, "x", (1,)))
        await mailbox.take(1.0)
        assert lock.__enter__.call_count == 2

    asyncio.run(run())


def test_a_mailbox_keeps_the_progress_of_each_of_its_prompts() -> None:
    async def run() -> None:
        mailbox = Mailbox(Doorbell(asyncio.get_running_loop()))
        events = [(handle(), PromptProgress(1, 9)), (handle(), PromptProgress(2, 9))]
        for event in events:
            mailbox.put(*event)
        assert await mailbox.take(1.0) == events

    asyncio.run(run())


def test_a_mailbox_that_nobody_empties_ends_its_request() -> None:
    async def run() -> None:
        mailbox, own = Mailbox(Doorbell(asyncio.get_running_loop()), most=3), handle()
        for at in range(3):
            mailbox.put(own, Piece(0, "x", (at,)))
        with pytest.raises(SlowReaderError):
            mailbox.put(own, Piece(0, "x", (3,)))
        assert len(await mailbox.take(1.0)) == 3

    asyncio.run(run())


# ---- the alarm -----------------------------------------------------------------------------------


class Clock:
    """The part of an event loop that an alarm needs, with timers that a test lets pass."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[FakeTimer] = []
        self.made = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], object]) -> "FakeTimer":
        self.timers.append(FakeTimer(self, when, call))
        self.made += 1
        return self.timers[-1]

    def go_to(self, now: float) -> None:
        while due := sorted((t for t in self.timers if t.at <= now), key=lambda t: t.at):
            self.now = due[0].at
            self.timers.remove(due[0])
            due[0].call()
        self.now = now


@dataclass
class FakeTimer:
    clock: Clock
    at: float
    call: Callable[[], object]

    def when(self) -> float:
        return self.at

    def cancel(self) -> None:
        self.clock.timers.remove(self)


def an_alarm() -> tuple[Clock, Alarm, list[float]]:
    clock, rung = Clock(), []
    return clock, Alarm(clock, lambda: rung.append(clock.now)), rung  # type: ignore[arg-type]


def test_an_alarm_rings_after_its_seconds_and_once() -> None:
    clock, alarm, rung = an_alarm()
    alarm.set(15)
    clock.go_to(100)
    assert rung == [15]


def test_an_alarm_that_is_cleared_or_closed_is_silent() -> None:
    clock, alarm, rung = an_alarm()
    alarm.set(15)
    alarm.clear()
    clock.go_to(100)
    alarm.set(15)
    alarm.close()
    clock.go_to(200)
    assert rung == []


def test_an_alarm_rings_after_the_last_time_that_it_was_set() -> None:
    clock, alarm, rung = an_alarm()
    for at in range(20):
        clock.go_to(at)
        alarm.set(15)
    clock.go_to(100)
    assert rung == [19 + 15]
    assert clock.made <= 3  # and not one for each time
    alarm.set(50)
    alarm.set(1)
    clock.go_to(200)
    assert rung == [34, 101]


def test_a_pass_of_many_answers_wakes_the_loop_once_when_all_have_their_token() -> None:
    async def go() -> None:
        loop = asyncio.get_running_loop()
        doorbell, own, woken = Doorbell(loop), handle(), []
        call_soon_threadsafe = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *call: (  # type: ignore[method-assign, assignment]
            woken.append(call), call_soon_threadsafe(*call)
        )  # fmt: skip
        mailboxes = [Mailbox(doorbell) for _ in range(32)]
        for mailbox in mailboxes:
            mailbox.put(own, Piece(0, "x", (1,)))
        assert not woken
        for _ in range(2):
            doorbell.ring()
        assert len(woken) == 1
        assert [len(await mailbox.take(5.0)) for mailbox in mailboxes] == [1] * 32
        doorbell.ring()  # nothing came since then
        assert len(woken) == 1

    asyncio.run(go())
