//! The keys of the audit log, the same in both programs but for one default.

use std::time::Duration;

use super::key::{CountBetween, Fallback, Key};
use super::loader::{ConfigError, Settings};
use crate::audit::retention::Retention;

/// What the section is about, for the example files.
pub(super) const SECTION: (&str, &str) = (
    "audit",
    "The log of every action across the peering. Its oldest rows go when they are too old or too many.",
);

/// Most rows that may be kept: some 250 MiB of store, all of which is read to verify it.
const ROWS_MOST: u32 = 1_000_000;

const ROWS: CountBetween = CountBetween {
    least: 1_000,
    most: ROWS_MOST,
    unit: "rows",
};

pub(super) static RETENTION_DAYS: Key<u32> = Key {
    path: "audit.retention_days",
    form: &CountBetween {
        least: 3,
        most: 3_650,
        unit: "days",
    },
    default: Fallback::Value("90"),
    doc: "How many days a row is kept. The federation asks for excerpts of the last 72 hours.",
    discreet: false,
};

/// 20,000 rows are some 5 MiB: the store of a small box is read as a whole at each start.
pub(super) static SATELLITE_MAX_ROWS: Key<u32> = Key {
    path: "audit.max_rows",
    form: &ROWS,
    default: Fallback::Value("20000"),
    doc: "How many rows are kept, whatever their age. A thousand take about 250 KiB on the disk.",
    discreet: false,
};

pub(super) static HOST_BRIDGE_MAX_ROWS: Key<u32> = Key {
    path: "audit.max_rows",
    form: &ROWS,
    default: Fallback::Value("100000"),
    doc: "How many rows are kept, whatever their age. A thousand take about 250 KiB on the disk.",
    discreet: false,
};

/// What the two keys come to.
pub(super) fn retention(settings: &Settings, max_rows: &'static Key<u32>) -> Result<Retention, ConfigError> {
    const DAY_SECONDS: u64 = 86_400;
    Ok(Retention {
        max_age: Duration::from_secs(u64::from(settings.required(&RETENTION_DAYS)?) * DAY_SECONDS),
        max_rows: settings.required(max_rows)?.into(),
    })
}
