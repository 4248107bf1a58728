"""The channel of an agent: batched, bounded, in order."""

import threading

from coordinator.fleet.outbox import Message, Outbox


def progress(item: str, *, trial_id: str = "train-1", epoch: int = 1) -> Message:
    return Message(trial_id, epoch, item, is_final=False)


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
    writer.join(10)
    assert [message.item for message in outbox.take(0)] == ["second"]


def test_a_fetch_waits_for_a_first_message() -> None:
    outbox = Outbox()
    timer = threading.Timer(0.02, outbox.put, args=(result("late"),))
    timer.start()

    assert [message.item for message in outbox.take(10)] == ["late"]
    timer.join()
