//! From when until when an X.509 certificate is valid: the one thing of it that nothing else here reads.

use time::{Date, Month, OffsetDateTime, Time};

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// notBefore and notAfter in Unix seconds; `None` where the DER is not that of a certificate.
pub fn validity(der: &[u8]) -> Option<(u64, u64)> {
    let (certificate, _) = element(der, SEQUENCE)?;
    let (mut rest, _) = element(certificate, SEQUENCE)?;
    if rest.first() == Some(&VERSION) {
        rest = element(rest, VERSION)?.1;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        rest = element(rest, *rest.first()?)?.1;
    }
    let (times, _) = element(rest, SEQUENCE)?;
    let (from, rest) = element(times, *times.first()?)?;
    let until_tag = *rest.first()?;
    let (until, _) = element(rest, until_tag)?;
    Some((moment(times[0], from)?, moment(until_tag, until)?))
}

/// The content of the element at the start, which must have that tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    if *found != tag {
        return None;
    }
    rest.split_at_checked(length)
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`, as RFC 5280 has them.
fn moment(tag: u8, text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = text.split_at_checked(match tag {
        UTC_TIME => 2,
        GENERALIZED_TIME => 4,
        _ => return None,
    })?;
    if rest.len() != 10 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let year: i32 = year.parse().ok()?;
    let year = match (tag, year) {
        (UTC_TIME, 50..) => 1900 + year,
        (UTC_TIME, _) => 2000 + year,
        _ => year,
    };
    let two = |at: usize| rest.get(at..at + 2)?.parse::<u8>().ok();
    let date = Date::from_calendar_date(year, Month::try_from(two(0)?).ok()?, two(2)?).ok()?;
    let time = Time::from_hms(two(4)?, two(6)?, two(8)?).ok()?;
    u64::try_from(OffsetDateTime::new_utc(date, time).unix_timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_both_forms_and_nothing_else_is() {
        assert_eq!(moment(UTC_TIME, b"250101000000Z"), Some(1_735_689_600));
        assert_eq!(moment(GENERALIZED_TIME, b"20250101000000Z"), Some(1_735_689_600));
        for bad in [&b"250101000000"[..], b"250101Z", b"251301000000Z", b"25010100000+Z", b""] {
            assert_eq!(moment(UTC_TIME, bad), None);
        }
    }

    #[test]
    fn a_cut_or_altered_certificate_never_panics() {
        let made = crate::certificate::SelfSigned::make(1_800_000_000_000).expect("a certificate");
        let (chain, _) = made.der().expect("DER");
        let der = chain[0].to_vec();
        assert_eq!(validity(&der).map(|(_, until)| until), Some(made.not_after_unix_s));
        for cut in 0..der.len() {
            let _ = validity(&der[..cut]);
            let mut altered = der.clone();
            altered[cut] ^= 0xff;
            let _ = validity(&altered);
        }
    }
}
