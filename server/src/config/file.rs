//! The file's layer: TOML, walked by hand so that every mistake is found with its line.

use std::path::Path;

use fanfare_proto::Code;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Problem, ValueOrigin, keys, keys::Key, keys::Kind, keys::Value, unknown, wrong_value};

/// A configuration is small; what is larger is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The values of a file with their lines; mistakes go to `problems`.
pub fn read(path: &Path, problems: &mut Vec<Problem>) -> Vec<(&'static Key, Value, usize)> {
    let mut unreadable = |what: String| {
        let advice = "check its path and its form (TOML)".to_owned();
        problems.push(Problem { code: Code::CONFIG_UNREADABLE, what, advice });
        Vec::new()
    };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
            return unreadable(format!("{} is over 1 MiB", path.display()));
        }
        _ => {}
    }
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return unreadable(format!("{}: {error}", path.display())),
    };
    let table = match DeTable::parse(&text) {
        Ok(table) => table,
        Err(error) => {
            let line = line_of(&text, error.span().map_or(0, |span| span.start));
            let message = error.message().lines().next().unwrap_or("not TOML").to_owned();
            return unreadable(format!("{}:{line}  {message}", path.display()));
        }
    };
    let mut values = Vec::new();
    walk(path, &text, "", table.get_ref(), &mut values, problems);
    values.sort_by_key(|(_, _, line)| *line);
    values
}

fn walk(
    path: &Path,
    text: &str,
    prefix: &str,
    table: &DeTable<'_>,
    values: &mut Vec<(&'static Key, Value, usize)>,
    problems: &mut Vec<Problem>,
) {
    let mut rows: Vec<(&Spanned<_>, &Spanned<DeValue<'_>>)> = table.iter().collect();
    rows.sort_by_key(|(name, _)| name.span().start);
    for (name, value) in rows {
        let line = line_of(text, name.span().start);
        let dotted = if prefix.is_empty() {
            name.get_ref().to_string()
        } else {
            format!("{prefix}.{}", name.get_ref())
        };
        let origin = ValueOrigin::File(path.to_owned(), line);
        match (value.get_ref(), keys::find(&dotted)) {
            (DeValue::Table(inner), None) => walk(path, text, &dotted, inner, values, problems),
            (_, None) => problems.push(unknown(&origin, &dotted)),
            (value, Some(key)) => match convert(key, value) {
                Ok(value) => values.push((key, value, line)),
                Err(reason) => problems.push(wrong_value(&origin, key, &reason)),
            },
        }
    }
}

fn convert(key: &Key, value: &DeValue<'_>) -> Result<Value, String> {
    let wrong = || Err(format!("a {} where {} is expected", value.type_str(), key.kind));
    match (key.kind, value) {
        (Kind::List | Kind::Networks, DeValue::Array(array)) => {
            let items = array.iter().map(|item| item.get_ref().as_str().map(str::to_owned));
            let items = items.collect::<Option<Vec<_>>>().ok_or("its items must be texts")?;
            if key.kind == Kind::List { Ok(Value::List(items)) } else { key.parse(&items.join(",")) }
        }
        (Kind::Number(..) | Kind::PowerOfTwo(..), DeValue::Integer(number)) if number.radix() == 10 => {
            key.parse(&number.as_str().replace('_', ""))
        }
        (Kind::Number(..) | Kind::PowerOfTwo(..) | Kind::List | Kind::Networks, _) => wrong(),
        (_, DeValue::String(text)) => key.parse(text),
        _ => wrong(),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}
