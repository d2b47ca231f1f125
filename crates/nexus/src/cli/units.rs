//! Numbers, durations and times as people read them, in the formats of the requirement's samples
//! ("`nexus daemon status`"). It reads no clock.

use jiff::Timestamp;
use jiff::tz::TimeZone;

const SECOND_MS: u64 = 1000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// `3,891`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1,234ms`, to the nearest millisecond; below 10 ms with one decimal.
pub(crate) fn milliseconds(ms: f64) -> String {
    if ms > 0.0 && ms < 10.0 {
        return format!("{ms:.1}ms");
    }
    // Saturating: a float beyond u64, or none at all, is no latency.
    format!("{}ms", thousands(ms.round() as u64))
}

/// How long something lasted, in its two largest units: `4h 23m`, `2d 4h`, `5m 12s`, `12s`.
pub(crate) fn duration(ms: u64) -> String {
    let (days, hours) = (ms / DAY_MS, ms % DAY_MS / HOUR_MS);
    let (minutes, seconds) = (ms % HOUR_MS / MINUTE_MS, ms % MINUTE_MS / SECOND_MS);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {seconds}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        (_, _, _) => format!("{days}d {hours}h"),
    }
}

/// How long ago something was, in its largest unit: `12s ago`, `3m ago`, `4h ago`, `2d ago`.
pub(crate) fn ago(ms: u64) -> String {
    let (count, unit) = match ms {
        0..MINUTE_MS => (ms / SECOND_MS, "s"),
        MINUTE_MS..HOUR_MS => (ms / MINUTE_MS, "m"),
        HOUR_MS..DAY_MS => (ms / HOUR_MS, "h"),
        DAY_MS.. => (ms / DAY_MS, "d"),
    };
    format!("{count}{unit} ago")
}

/// A period as it is configured: `60s`, or `1500ms` where seconds don't fit.
pub(crate) fn period(ms: u64) -> String {
    if ms.is_multiple_of(SECOND_MS) { format!("{}s", ms / SECOND_MS) } else { format!("{ms}ms") }
}

/// `2026-02-05 14:30`.
pub(crate) fn minute(unix_ms: i64, zone: &TimeZone) -> String {
    format(unix_ms, zone, "%Y-%m-%d %H:%M")
}

/// `2026-02-05 14:30:07`.
pub(crate) fn second(unix_ms: i64, zone: &TimeZone) -> String {
    format(unix_ms, zone, "%Y-%m-%d %H:%M:%S")
}

/// `14:30:07.123`.
pub(crate) fn clock(unix_ms: i64, zone: &TimeZone) -> String {
    format(unix_ms, zone, "%H:%M:%S%.3f")
}

fn format(unix_ms: i64, zone: &TimeZone, pattern: &str) -> String {
    match Timestamp::from_millisecond(unix_ms) {
        Ok(time) => time.to_zoned(zone.clone()).strftime(pattern).to_string(),
        // A time that no calendar has is shown as the number it is.
        Err(_) => unix_ms.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_thousands() {
        let cases = [(0, "0"), (156, "156"), (999, "999"), (1000, "1,000"), (3891, "3,891"), (1_234_567, "1,234,567")];
        for (number, text) in cases {
            assert_eq!(thousands(number), text);
        }
        assert_eq!(thousands(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn latencies() {
        assert_eq!(milliseconds(1234.4), "1,234ms");
        assert_eq!(milliseconds(0.0), "0ms");
        assert_eq!(milliseconds(0.34), "0.3ms");
        assert_eq!(milliseconds(f64::NAN), "0ms");
        assert_eq!(milliseconds(-5.0), "0ms");
    }

    #[test]
    fn durations_have_two_units() {
        let cases =
            [(0, "0s"), (59_999, "59s"), (60_000, "1m 0s"), (15_780_000, "4h 23m"), (86_399_999, "23h 59m"), (187_200_000, "2d 4h")];
        for (ms, text) in cases {
            assert_eq!(duration(ms), text);
        }
    }

    #[test]
    fn ages_have_one_unit() {
        let cases =
            [(0, "0s ago"), (12_900, "12s ago"), (60_000, "1m ago"), (180_000, "3m ago"), (7_200_000, "2h ago"), (172_800_000, "2d ago")];
        for (ms, text) in cases {
            assert_eq!(ago(ms), text);
        }
    }

    #[test]
    fn periods_are_as_configured() {
        assert_eq!(period(60_000), "60s");
        assert_eq!(period(1500), "1500ms");
    }

    #[test]
    fn times_follow_the_zone() {
        let zone = TimeZone::UTC;
        assert_eq!(minute(1_770_301_800_000, &zone), "2026-02-05 14:30");
        assert_eq!(second(1_770_301_807_000, &zone), "2026-02-05 14:30:07");
        assert_eq!(clock(1_770_301_807_123, &zone), "14:30:07.123");
        assert_eq!(minute(i64::MAX, &zone), i64::MAX.to_string());
    }
}
