"""What a failure of a machine means for a build.

A worker names the reason of a failure in the update ``failure_reason``, as Buildbot's own worker does for a
command that timed out, and says in ``vm_error`` what happened and what to do about it. Here each reason gets
the result of its step. FAILURE is kept for the code under test: a build is red because of its code, or it is
not red.
"""

from __future__ import annotations

from buildbot.process.results import EXCEPTION, FAILURE, RETRY

#: The step's result for each ``failure_reason`` of a VM command.
#:
#: RETRY where the same build may well pass later or elsewhere; EXCEPTION where somebody has to mend something
#: first. Buildbot starts a RETRY again at once and without a limit, hence ``max_retries`` of the steps; after an
#: EXCEPTION it gives the worker no builds for 10 seconds, doubling up to an hour. ``vm_copy_failed`` is a
#: FAILURE as it is for Buildbot's own transfers: nearly always the build did not make the file.
RESULTS: dict[str, int] = {
    "vm_no_such_image": EXCEPTION,
    "vm_bad_arguments": EXCEPTION,
    "vm_pool_full": RETRY,
    "vm_too_large": EXCEPTION,
    "vm_boot_failed": EXCEPTION,
    "vm_already_running": EXCEPTION,
    "vm_not_running": EXCEPTION,
    "vm_lost": RETRY,
    "vm_copy_failed": FAILURE,
    "vm_stop_failed": EXCEPTION,
    "vm_save_failed": EXCEPTION,
    "vm_reboot_failed": EXCEPTION,
    "vm_expired": EXCEPTION,
    "vm_outgrown": EXCEPTION,
    "vm_host_refused": EXCEPTION,
}

#: The longest sentence (characters) shown as a step's summary. The step's log has all of it.
SENTENCE_LIMIT = 300


class VMError(Exception):
    """A machine, not the code under test, made a command fail.

    ``reason`` is the wire's ``failure_reason`` (``vm_lost``, ...), ``sentence`` says what happened and the remedy.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(f"{reason}: {sentence}")
        self.reason = reason
        self.sentence = sentence


def is_vm_reason(reason: object) -> bool:
    """Tell a machine's failure from the others: ``timeout``, ``max_lines_failure``, ..."""
    return isinstance(reason, str) and reason.startswith("vm_")


def one_sentence(text: object, reason: str) -> str:
    """Make of a worker's ``vm_error`` what fits into one line of the web page.

    The first line says it. Others, announced by a clause that ends in a colon, show what a console or QEMU printed;
    the step's log has them.
    """
    sentence, _, more = text.strip().partition("\n") if isinstance(text, str) else ("", "", "")
    if more and sentence.endswith(":"):
        sentence = sentence[:-1].rpartition("; ")[0] or sentence[:-1]
    if not sentence:
        return f"the worker gives no more than this reason: {reason}"
    if len(sentence) > SENTENCE_LIMIT:
        return sentence[: SENTENCE_LIMIT - 1] + "…"
    return sentence
