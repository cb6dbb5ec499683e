//! A community's trace: who wrote when, where, in which topic, how much. Facts only; the words come from [`Bodies`].

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use anyhow::{Context, Result, bail};
use flate2::read::GzDecoder;

/// One message of the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Unix seconds, ascending.
    pub time_s: u64,
    /// Channel, from 0 in order of first use.
    pub channel: u32,
    /// Topic within the whole trace.
    pub topic: u32,
    /// Sender, from 0 in order of first use.
    pub sender: u32,
    /// Length of the text in UTF-8 bytes.
    pub bytes: u32,
}

/// The first messages of a trace, with channels, topics and senders numbered densely from 0.
#[derive(Debug)]
pub struct Trace {
    /// In order of time.
    pub rows: Vec<Row>,
    /// How many channels they use.
    pub channels: usize,
    /// How many senders.
    pub senders: usize,
    /// How many topics.
    pub topics: usize,
}

fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let gzipped = path.extension().is_some_and(|extension| extension == "gz");
    let reader: Box<dyn Read> = if gzipped { Box::new(GzDecoder::new(file)) } else { Box::new(file) };
    Ok(Box::new(BufReader::with_capacity(1 << 16, reader)))
}

/// Numbers whatever comes densely, in order of first use.
#[derive(Default)]
struct Dense {
    seen: hashbrown::HashMap<u32, u32>,
}

impl Dense {
    fn number(&mut self, of: u32) -> u32 {
        let next = self.seen.len() as u32;
        *self.seen.entry(of).or_insert(next)
    }
}

impl Trace {
    /// Reads at most `messages_max` rows behind the first `skip` of a CSV file (gzipped where its name ends in `.gz`) with the header
    /// `timestamp,channel,topic,sender,bytes`.
    pub fn read(path: &Path, skip: usize, messages_max: usize) -> Result<Self> {
        let mut lines = open(path)?.lines();
        let header = lines.next().transpose()?.unwrap_or_default();
        if header.trim() != "timestamp,channel,topic,sender,bytes" {
            bail!(
                "{}: the first line is `{header}`, not `timestamp,channel,topic,sender,bytes`",
                path.display()
            );
        }
        let (mut channels, mut topics, mut senders) = (Dense::default(), Dense::default(), Dense::default());
        let mut rows: Vec<Row> = Vec::new();
        for (index, line) in lines.enumerate().skip(skip).take(messages_max) {
            let line = line?;
            let fields: Vec<u64> = line
                .split(',')
                .map(|field| field.trim().parse::<u64>())
                .collect::<Result<_, _>>()
                .with_context(|| format!("{}:{}: `{line}`", path.display(), index + 2))?;
            let [time_s, channel, topic, sender, bytes] = fields[..] else {
                bail!("{}:{}: `{line}` has {} fields, not 5", path.display(), index + 2, fields.len());
            };
            if rows.last().is_some_and(|last| last.time_s > time_s) {
                bail!("{}:{}: times must ascend", path.display(), index + 2);
            }
            rows.push(Row {
                time_s,
                channel: channels.number(u32::try_from(channel)?),
                topic: topics.number(u32::try_from(topic)?),
                sender: senders.number(u32::try_from(sender)?),
                bytes: u32::try_from(bytes)?,
            });
        }
        if rows.is_empty() {
            bail!("{} holds no messages behind the first {skip}", path.display());
        }
        Ok(Self {
            rows,
            channels: channels.seen.len(),
            senders: senders.seen.len(),
            topics: topics.seen.len(),
        })
    }
}

/// Lines that people typed, put together to texts of a wanted length.
#[derive(Debug)]
pub struct Bodies {
    lines: Vec<String>,
}

impl Bodies {
    /// Reads one line a body (gzipped where the name ends in `.gz`).
    pub fn read(path: &Path) -> Result<Self> {
        let lines: Vec<String> = open(path)?.lines().collect::<Result<_, _>>()?;
        let lines: Vec<String> = lines.into_iter().filter(|line| !line.is_empty()).collect();
        if lines.is_empty() {
            bail!("{} holds no lines", path.display());
        }
        Ok(Self { lines })
    }

    /// A text of exactly `bytes` UTF-8 bytes (at least 1), different for each `number`: it begins with the number in
    /// base 36, so that two messages are never equal where there is room for it.
    pub fn text(&self, number: u64, bytes: usize) -> String {
        let bytes = bytes.max(1);
        let mut text = String::with_capacity(bytes + 8);
        push_base36(&mut text, number);
        text.push(' ');
        let mut line = (number as usize).wrapping_mul(0x9e37_79b1) % self.lines.len();
        while text.len() < bytes {
            text.push_str(&self.lines[line]);
            text.push(' ');
            line = (line + 1) % self.lines.len();
        }
        let mut end = bytes;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        while text.len() < bytes {
            text.push('.');
        }
        text
    }
}

fn push_base36(text: &mut String, mut number: u64) {
    let mut digits = [0u8; 13];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize];
        number /= 36;
        if number == 0 {
            break;
        }
    }
    text.extend(digits[at..].iter().map(|digit| *digit as char));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_the_wanted_length_and_differ() {
        let bodies = Bodies { lines: vec!["häßlich 🦀 line".into(), "another".into()] };
        let mut seen = std::collections::HashSet::new();
        for number in 0..500 {
            for bytes in [8, 20, 113, 1900] {
                let text = bodies.text(number, bytes);
                assert_eq!(text.len(), bytes);
                assert!(seen.insert(text));
            }
        }
        assert_eq!(bodies.text(7, 0).len(), 1);
    }

    #[test]
    fn a_trace_is_numbered_densely_and_mistakes_are_named() {
        let folder = std::env::temp_dir().join(format!("fanfare-trace-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("trace.csv");
        std::fs::write(&path, "timestamp,channel,topic,sender,bytes\n5,9,7,3,20\n5,2,8,3,10\n6,9,7,1,4\n")
            .unwrap();
        let trace = Trace::read(&path, 0, 100).unwrap();
        assert_eq!((trace.channels, trace.senders, trace.topics), (2, 2, 2));
        assert_eq!(trace.rows[2], Row { time_s: 6, channel: 0, topic: 0, sender: 1, bytes: 4 });
        assert_eq!(Trace::read(&path, 0, 1).unwrap().rows.len(), 1);
        let last = Trace::read(&path, 2, 9).unwrap();
        assert_eq!((last.rows[0].time_s, last.senders), (6, 1));
        assert!(Trace::read(&path, 3, 9).is_err());
        std::fs::write(&path, "timestamp,channel,topic,sender,bytes\n5,9,7,3\n").unwrap();
        assert!(format!("{:#}", Trace::read(&path, 0, 9).unwrap_err()).contains(":2:"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
