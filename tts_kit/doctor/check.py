"""One thing looked at, and the report of all of them."""

from dataclasses import dataclass

INSTALL = "Run `pip install -r requirements.txt -c constraints.txt`."


@dataclass(frozen=True)
class Check:
    name: str
    state: str
    """ok, warn or fail."""
    seen: str
    do: str = ""
    """What to do about it; empty when the state is ok."""


def report(checks: list[Check]) -> str:
    """Aligned plain text; under each line that is not ok stands what to do."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state:<4}  {check.name:<{width}}  {check.seen}")
        if check.state != "ok":
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.do}")
    count = {state: sum(check.state == state for check in checks) for state in ("ok", "warn", "fail")}
    lines.append(f"{count['fail']} to repair, {count['warn']} to know about, {count['ok']} in order.")
    return "\n".join(lines)
