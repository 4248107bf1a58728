"""The channel of an agent: batched, bounded, in order."""

import threading

from agent.log import MAX_BYTES
from coordinator.fleet.outbox import Message, Outbox


def progress(item: str, *, trial_id: str = "train-1", epoch: int = 1, log: str = "") -> Message:
    return Message(trial_id, epoch, item, is_final=False, log=log)


def result(item: str, *, trial_id: str = "train-1") -> Message:
    return Message(trial_id, 1, item, is_final=True)


def test_one_fetch_takes_all_there_is_in_order() -> None:
    outbox = Outbox()
    for message in (progress("a"), result("b"), progress("c", trial_id="train-2")):
        outbox.put(message)

    assert [message.item for message in outbox.take(0)] == ["a", "b", "c"]
    assert outbox.take(0) == []


def test_progress_that_nobody_fetched_is_replaced_by_newer_progress() -> None:
    outbox = Outbox()
    for number in range(1000):
        outbox.put(progress(str(number)))

    assert [message.item for message in outbox.take(0)] == ["999"]


def test_progress_that_is_replaced_leaves_its_lines_to_the_newer() -> None:
    outbox = Outbox()
    outbox.put(progress("a", log="one\n"))
    outbox.put(progress("b"))
    outbox.put(progress("c", log="two\n"))

    assert [(message.item, message.log) for message in outbox.take(0)] == [("c", "one\ntwo\n")]


def test_lines_that_nobody_fetches_do_not_fill_the_memory() -> None:
    outbox = Outbox()
    for number in range(10_000):
        outbox.put(progress("a", log=f"line {number}\n"))
    (message,) = outbox.take(0)

    assert len(message.log) <= MAX_BYTES
    assert message.log.endswith("line 9999\n")


def test_progress_of_another_attempt_is_kept() -> None:
    outbox = Outbox()
    outbox.put(progress("first attempt", epoch=1))
    outbox.put(progress("second attempt", epoch=2))

    assert [message.item for message in outbox.take(0)] == ["first attempt", "second attempt"]


def test_a_result_waits_until_there_is_room() -> None:
    outbox = Outbox(max_results=1)
    outbox.put(result("first"))
    writer = threading.Thread(target=outbox.put, args=(result("second"),))
    writer.start()

    writer.join(0.05)
    assert writer.is_alive()
    assert [message.item for message in outbox.take(0)] == ["first"]
    writer.join(60)
    assert [message.item for message in outbox.take(0)] == ["second"]


def test_a_fetch_waits_for_a_first_message() -> None:
    outbox = Outbox()
    timer = threading.Timer(0.02, outbox.put, args=(result("late"),))
    timer.start()

    assert [message.item for message in outbox.take(60)] == ["late"]
    timer.join()
