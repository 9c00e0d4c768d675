"""`edgeseal-agent`: the command line of the device. Each command imports what it needs when it is called.

Results go to standard output (text, or one JSON object with --json), everything else to standard error. Exit codes are
those of edgeseal.errors.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from edgeseal import __version__
from edgeseal.device import line_words, rng_words
from edgeseal.errors import EdgesealError, NoSpaceError, TemporaryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgeseal.device.agent import Agent

_BAR: int = 24  # characters


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        from edgeseal.device import config
        from edgeseal.device.agent import Agent

        agent = Agent(config.load(arguments.config), say=_say(arguments), progress=_progress(arguments))
        with closing(agent):
            return int(arguments.run(agent, arguments))
    except EdgesealError as e:
        return _fail(e, arguments)
    except OSError as e:
        return _fail(_from_os_error(e), arguments)
    except KeyboardInterrupt:
        return 130


# Commands ------------------------------------------------------------------------------------------------------------


def _update(agent: Agent, arguments: argparse.Namespace) -> int:
    from edgeseal.device import update

    if arguments.entropy_fd is not None:
        from edgeseal.entropy.handed import receive

        agent.handed = receive(arguments.entropy_fd)
    with agent.locked():
        done = update.run(agent, report=arguments.report)
    if arguments.json:
        _print_json(done.as_dict())
    else:
        for o in done.installed:
            share = f"{o.bytes_fetched:,} of {o.stored_size:,} bytes fetched"
            print(f"{o.model} release {o.release} is active ({share})")
        if not done.installed and not done.errors:
            print("nothing new" if not done.problems else "nothing new; see above")
    for error in done.errors:
        _fail(error, arguments, printed=arguments.json)
    if done.errors:
        return done.errors[0].exit_code
    return TemporaryError.exit_code if done.problems else 0


def _run(agent: Agent, arguments: argparse.Namespace) -> int:
    from edgeseal.device.service import Service

    _ = agent.profile
    return Service(agent, arguments.config).run()


def _install(agent: Agent, arguments: argparse.Namespace) -> int:
    from edgeseal.device.media import install_from

    with agent.locked():
        done = install_from(agent, arguments.file)
    found = [{"model": o.model, "release": o.release, "bytes_copied": o.bytes_fetched} for o in done]
    text = "\n".join(f"{o.model} release {o.release} is active" for o in done) or "nothing new"
    return _done({"installed": found}, text, arguments)


def _status(agent: Agent, arguments: argparse.Namespace) -> int:
    from edgeseal.device import status

    found = status.collect(agent)
    return _done(found, status.text(found), arguments)


def _rollback(agent: Agent, arguments: argparse.Namespace) -> int:
    from edgeseal.device.releases import roll_back

    with agent.locked():
        o = roll_back(agent, arguments.model)
    return _done({"model": o.model, "release": o.release}, f"{o.model} is back at release {o.release}", arguments)


def _doctor(agent: Agent, arguments: argparse.Namespace) -> int:
    from edgeseal.device import doctor

    findings = doctor.examine(agent)
    lines = [f"{f.verdict:8} {f.check}: {f.detail}" + (f"\n         {f.hint}" if f.hint else "") for f in findings]
    _done({"findings": doctor.as_dicts(findings)}, "\n".join(lines), arguments)
    return 1 if any(f.verdict == "failed" for f in findings) else 0


def _provision(agent: Agent, arguments: argparse.Namespace) -> int:
    from edgeseal.device import provision
    from edgeseal.provisioning import Stage

    stage = provision.run(
        agent, arguments.port, baud=arguments.baud, linger=arguments.linger, for_reset=arguments.reset
    )
    if "stdio" not in arguments.port:  # there standard output is the line
        _done({"stage": str(stage)}, f"this device is {stage}", arguments)
    return 0 if stage is Stage.LOCKED else TemporaryError.exit_code


def _lock(agent: Agent, arguments: argparse.Namespace) -> int:
    from edgeseal.device import provision

    provision.lock(agent)
    return _done({"stage": "locked"}, "locked: this device answers no manufacturing station any more", arguments)


def _rng(agent: Agent, arguments: argparse.Namespace) -> int:
    if arguments.step == "watch":
        from edgeseal.device.rng_watch import watch

        return watch(agent, interval=arguments.interval, count=arguments.count, as_json=arguments.json)
    from edgeseal.device import rng

    found = rng.run(agent, arguments)
    _done(found.about, found.text, arguments)
    return found.code


def _enrol_request(agent: Agent, arguments: argparse.Namespace) -> int:
    from edgeseal.device import enrol
    from edgeseal.durable import write_atomic

    with agent.locked():
        request = enrol.request(agent, arguments.suite)
    write_atomic(arguments.out, request.to_bytes(), mode=0o644)
    from edgeseal.suite import kid

    about = {"file": str(arguments.out), "kid": kid(request.suite, request.public).hex(), "entropy": request.entropy}
    text = (
        f"wrote {arguments.out} (key {about['kid']})\nnext, on the workstation: edgeseal device enrol {arguments.out} …"
    )
    return _done(about, text, arguments)


def _enrol_accept(agent: Agent, arguments: argparse.Namespace) -> int:
    from edgeseal.device import enrol
    from edgeseal.enrolment import MAX_GRANT

    try:
        with arguments.grant.open("rb") as f:
            data = f.read(MAX_GRANT + 1)
    except FileNotFoundError:
        raise UsageError(f"there is no {arguments.grant}") from None
    with agent.locked():
        made = enrol.accept(agent, data)
    about = {"device": made.device, "fleet_url": made.fleet_url, "suite": made.suite}
    return _done(about, f"enrolled as {made.device} in the fleet of {made.fleet_url}", arguments)


# Words ---------------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
    parser = argparse.ArgumentParser(
        prog="edgeseal-agent",
        description="Install signed, encrypted models on this device and keep the good one running.",
        epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 refused by verification, 4 not authorised, 5 try again later, "
        "6 incompatible, 7 the entropy policy forbids it.",
    )
    parser.add_argument("--config", type=Path, help="configuration file (default: /etc/edgeseal/edgeseal.toml)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    update = commands.add_parser("update", parents=[common], help="one update pass: refresh, check in, install")
    update.add_argument("--report", action="store_true", help="talk to the fleet server even if nothing changed")
    update.add_argument("--entropy-fd", type=int, help=argparse.SUPPRESS)  # how the service hands blocks to a pass
    update.set_defaults(run=_update)
    commands.add_parser("run", parents=[common], help="run as a service").set_defaults(run=_run)
    install = commands.add_parser(
        "install", parents=[common], help="install from a directory or tar on removable media"
    )
    install.add_argument("file", type=Path, metavar="FILE")
    install.set_defaults(run=_install)
    commands.add_parser("status", parents=[common], help="show what this device is and runs").set_defaults(run=_status)
    rollback = commands.add_parser("rollback", parents=[common], help="go back to the release before")
    rollback.add_argument("model", nargs="?", metavar="MODEL")
    rollback.set_defaults(run=_rollback)
    commands.add_parser("doctor", parents=[common], help="check everything, one by one").set_defaults(run=_doctor)

    rng_words.add(commands, common, _rng)
    line_words.add(commands, common, _provision, _lock)

    steps = commands.add_parser("enrol", help="join a fleet").add_subparsers(metavar="STEP", required=True)
    request = steps.add_parser("request", parents=[common], help="make this device's key and a request file")
    request.add_argument("--out", type=Path, required=True, metavar="FILE")
    request.add_argument("--suite", type=int, choices=(1, 2), default=1, help="1: ML-KEM-768 + X25519, 2: ML-KEM-1024")
    request.set_defaults(run=_enrol_request)
    accept = steps.add_parser("accept", parents=[common], help="take the fleet's grant")
    accept.add_argument("grant", type=Path, metavar="FILE")
    accept.set_defaults(run=_enrol_accept)
    return parser


def _done(about: Mapping[str, object], text: str, arguments: argparse.Namespace) -> int:
    if arguments.json:
        _print_json(about)
    else:
        print(text)
    return 0


def _print_json(about: Mapping[str, object]) -> None:
    print(json.dumps(about, ensure_ascii=False))


def _fail(error: EdgesealError, arguments: argparse.Namespace, *, printed: bool = False) -> int:
    if arguments.json and not printed:
        _print_json(error.as_dict())
    elif not arguments.json:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code


def _from_os_error(e: OSError) -> EdgesealError:
    where = f": {e.filename}" if e.filename else ""
    if e.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpaceError(f"no space left{where}", hint="free some; what is installed keeps running")
    if e.errno in {errno.EACCES, errno.EPERM}:
        return EdgesealError(f"not permitted{where}", hint=f"run as the agent's user (this is uid {os.getuid()})")
    if e.errno in {errno.EROFS, errno.EIO}:
        return TemporaryError(f"{e.strerror}{where}", hint="check the card; what is installed keeps running")
    return EdgesealError(f"{e.strerror or type(e).__name__}{where}")


def _say(arguments: argparse.Namespace) -> Callable[[str], None]:
    if arguments.json:
        return lambda _text: None
    return lambda text: print(text, file=sys.stderr, flush=True)


def _progress(arguments: argparse.Namespace) -> Callable[[str, int, int], None]:
    """Return a function that draws one line on a terminal; the agent has no rich."""
    if arguments.json or not sys.stderr.isatty():
        return lambda *_: None

    def draw(what: str, done: int, total: int) -> None:
        share = done / total if total else 1.0
        bar = "#" * int(share * _BAR)
        end = "\n" if done >= total else ""
        sys.stderr.write(f"\r{what} [{bar:<{_BAR}}] {done / 2**20:,.1f}/{total / 2**20:,.1f} MiB{end}")
        sys.stderr.flush()

    return draw


if __name__ == "__main__":
    sys.exit(main())
