"""The entry point: help and version at once, everything else through cyclopts, every failure as an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

INTERRUPTED = 130

# What `perdure --help` prints; a test holds it against the commands, so that the frequent case imports nothing.
HELP = """\
Usage: perdure COMMAND [ARGS] [OPTIONS]

Perdure runs agents that do not die.

Start:
  demo [FOLDER]             The invoice desk: a worker killed half-way; the proof.
  run APP:AGENT [INPUT]     Start a run, show its progress, print its result.
  exec -- CMD...            Run an unmodified program as an agent that goes on after a crash.
  work APP                  Drive all runs of an app until told to stop.
  worker --role sandbox     Execute jobs of other machines in sandboxes of this one.

Look and act, also beside a running process:
  runs list                 List runs, newest first.
  runs show RUN             Everything about one run.
  runs journal RUN          The recorded entries of a run.
  runs tail RUN             Follow a run's entries as they are recorded.
  runs diff RUN RUN         Two journals from their first difference.
  runs cancel RUN [REASON]  Ask a run and its children to stop.
  runs resume RUN           Let a blocked run go on.
  runs fork RUN --at SEQ    Start a new run from a point of another's journal.
  send RUN TOPIC [BODY]     Put a message into a run's mailbox.
  questions                 List what runs ask humans.
  answer RUN CALL [BODY]    Answer a question.
  schedules list            List schedules.

Tools, models, money:
  actions list              List what runs did with tools and models.
  actions show RUN/CALL     Everything about one action.
  actions doubtful          What must be decided: doubtful or held actions.
  actions settle RUN/CALL   Decide: happened, did-not-happen, retry, live, fail.
  budgets [RUN]             What runs may use, and have used.
  budgets set RUN           Give a run another budget.
  tools list [APP]          List tools.
  tools call TOOL [JSON]    Call a tool once, outside of any run.
  models list               List upstreams and their models.
  models test MODEL         Ask a model for one word.

Govern:
  approvals list            What waits for a person.
  approvals show RUN/CALL   Everything that an approver signs.
  approvals approve RUN/CALL  Sign, with your key, that this may happen, once.
  approvals reject RUN/CALL  Sign that it must not happen.
  approvals ask RUN/CALL    What a page needs to have it signed with a passkey.
  approvals submit RUN/CALL  Hand in what was signed elsewhere.
  policy check FOLDER APP   Hold policies against the tools of an app.
  policy test FOLDER APP    Run the table tests of policies.
  policy explain FOLDER APP RUN/CALL  Which policies decide about an action.
  policy backtest FOLDER APP  Which verdicts of the past would change.
  conduct risk APP          How much agents could do on their own, as an index.
  conduct drift freeze AGENT  Keep how an agent acts now as its baseline.
  conduct drift check AGENT  Whether it still acts like that.
  conduct drift list        What was frozen.
  keys list                 Whose signature counts.
  keys new                  Make your key; only its public half is registered.
  keys import FILE          Register the public keys of a team.
  keys invite               Let a person register a passkey.
  keys passkey              Register the passkey of who was invited.
  keys revoke KEY           Revoke a key.
  contain list              What is contained.
  contain set SCOPE LEVEL   Watch, restrict, hold or stop an agent, run or tool.
  contain lift SCOPE        End a containment.
  kill SCOPE                The kill switch.
  agents quarantine NAME    Hold the runs of an agent.
  agents release NAME       Let them go on.
  agents quarantined        Agents whose runs are held.
  runs undo RUN APP         Take back what a run did.
  audit verify              Check the tamper-evident log.
  audit status              How far it is signed, and what its witnesses say.
  audit witness             Cosign checkpoints of logs, for somebody else.
  audit show RUN/CALL       What the log says of one action.
  audit prove RUN/CALL      The proof of one action, checked without the log.
  audit export              Write the whole log.
  audit checkpoint          Sign the head of the log now.
  audit key                 The public key of the log.
  audit rotate-key          Let a new key sign the log from now on.
  audit erase SUBJECT       Destroy the encrypted details about somebody.

Sandboxes:
  sandbox doctor            Which walls can be had here, and how to get others.
  sandbox run FILE          Execute a Python file in a fresh sandbox.
  workspace list RUN        The files of a run.
  workspace get RUN NAME    One of them.
  workspace history RUN     What actions have done to them.

Operate:
  sandbox enrol NAME        Make a certificate for a sandbox host or a client of hosts.
  top                       Live processor time, memory and states of what runs.
  backup TARGET             Copy the database, also while a process works on it.
  doctor                    Check the installation and the data directory.
  bench                     Measure durable steps on this disk, beside bare SQLite commits.

Options:
  --help, -h                Show this text; `perdure COMMAND --help` shows a command's options.
  --version                 Show the version.

Most commands take --data DIR (default $PERDURE_DATA, else ./data) and --json.
Exit codes: 0 ok, 1 run failed, 2 usage, 3 refused, 4 unavailable, 5 blocked or corrupt, 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in ([], ["--help"], ["-h"], ["help"]):
        sys.stdout.write(HELP)
        sys.exit(0)
    if arguments == ["--version"]:
        from perdure import __version__

        print(__version__)
        sys.exit(0)
    sys.exit(_dispatch(arguments))


def _dispatch(arguments: list[str]) -> int:
    from cyclopts import CycloptsError

    from perdure.cli.commands import app
    from perdure.cli.output import Out, exit_code
    from perdure.core.errors import PerdureError, UsageError

    is_json = "--json" in arguments
    try:
        return int(app(arguments) or 0)
    except CycloptsError as error:
        failure: PerdureError = UsageError(_plain(error))
    except PerdureError as error:
        failure = error
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has gone: nobody is left to tell
        return 0
    Out(is_json).error(failure)
    return exit_code(failure)


def _plain(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{text}; `--help` shows what a command takes"


def __getattr__(name: str) -> Any:
    """``app``, the cyclopts application, made when it is first asked for."""
    if name == "app":
        from perdure.cli.commands import app

        return app
    raise AttributeError(name)
