//! "Did you mean": the nearest of some names, where one is near enough.

/// The nearest name, at most a third of its letters away.
pub fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, delete or replace.
fn distance(one: &str, other: &str) -> usize {
    // Names are short; a longer one is not near anything.
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().take(64).collect(), other.chars().collect());
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_mistakes_find_their_name_and_noise_finds_none() {
        let names = ["gateway.listen", "http.listen", "data.folder"];
        assert_eq!(nearest("gatway.listn", names.into_iter()), Some("gateway.listen"));
        assert_eq!(nearest("data.fodler", names.into_iter()), Some("data.folder"));
        assert_eq!(nearest("zzz.qqqqqq", names.into_iter()), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
