"""The stock of pipes: bounded, reused when empty, closed when not."""

import os

from ztunnel.kernel.pipes import Pipes


def test_there_are_no_more_than_allowed_and_empty_ones_are_used_again() -> None:
    pipes = Pipes(2)
    one, other = pipes.take(), pipes.take()
    assert one is not None
    assert other is not None
    assert pipes.take() is None
    one.give_back()
    assert pipes.take() is one
    one.discard()
    third = pipes.take()
    assert third is not None
    assert third is not one
    for pipe in (other, third):
        pipe.give_back()
    pipes.close()
    assert pipes.made == 0
    assert pipes.take() is None


def test_what_comes_back_after_the_end_is_closed() -> None:
    pipes = Pipes()
    pipe = pipes.take()
    assert pipe is not None
    os.write(pipe.into, b"x")
    pipes.close()
    pipe.give_back()
    assert pipes.made == 0
