"""When a scheduled run is due: cron or interval and time zone, checked before anything is served."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from karat.errors import ConfigError

if TYPE_CHECKING:
    from prefect.schedules import Schedule

CRON_HINT = "five fields: minute, hour, day, month, weekday, as in '0 2 * * *' for two o'clock every night"


def local_timezone() -> str:
    """The IANA name of this machine's time zone; UTC where it cannot be told."""
    link = Path("/etc/localtime")
    candidates = [os.environ.get("TZ", "").lstrip(":")]
    if link.exists():
        candidates.append(str(link.resolve()).partition("zoneinfo/")[2])
    return next((name for name in candidates if name and _known(name)), "UTC")


def _known(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        return False
    return True


def timetable(cron: str | None, interval: timedelta | None, timezone: str | None) -> Schedule:
    """Prefect's schedule for exactly one of cron and interval; raises ConfigError if it can never fire."""
    from prefect.schedules import Cron, Interval

    zone = timezone or local_timezone()
    if not _known(zone):
        raise ConfigError(
            f"{zone!r} is not a time zone",
            where="--timezone",
            hint="an IANA name, as in Europe/Vienna or UTC",
        )
    if (cron is None) == (interval is None):
        raise ConfigError("give a cron expression or an interval, not both", where="--cron", hint=CRON_HINT)
    if interval is not None:
        if interval < timedelta(seconds=1):
            raise ConfigError("must be at least one second", where="--interval")
        # Anchored in the past, so that the first run is due one interval from now and not before.
        return Interval(interval, anchor_date=datetime.now(UTC), timezone=zone)
    if cron is None:
        raise AssertionError("one of the two was given")
    try:
        schedule = Cron(cron, timezone=zone)
    except ValueError as error:
        raise ConfigError(f"{cron!r} is not a cron expression", where="--cron", hint=CRON_HINT) from error
    next_due(schedule)
    return schedule


def next_due(schedule: Schedule) -> datetime:
    """The next moment at which the schedule fires, in its own time zone."""
    from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule

    model: CronSchedule | IntervalSchedule
    if schedule.interval is not None:
        model = IntervalSchedule(
            interval=schedule.interval, anchor_date=schedule.anchor_date, timezone=schedule.timezone
        )
    else:
        model = CronSchedule(cron=schedule.cron or "", timezone=schedule.timezone)
    try:
        dates = asyncio.run(model.get_dates(1))
    except ValueError:  # cron's reader gives up on a date that never comes, as the 30th of February
        dates = []
    if not dates:
        raise ConfigError(f"{schedule.cron!r} never comes due", where="--cron", hint=CRON_HINT)
    due: datetime = dates[0]
    return due.astimezone(ZoneInfo(schedule.timezone or "UTC"))
