//! Who answers what in a trace, and whom each message reached. Pure.

use hashbrown::HashMap;

use crate::trace::{Row, Trace};

/// What somebody else wrote in the topic so long ago is answered by a post.
const ANSWERED_WITHIN_S: u64 = 24 * 3600;

/// A post that answers a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Who posts.
    pub sender: u32,
    /// Row of the newest message that somebody else had written in the topic.
    pub to: u32,
}

/// The answers of a trace in which nobody is a member before the first post of theirs in a channel.
pub fn answers(trace: &Trace) -> Vec<Answer> {
    let mut joined: Vec<hashbrown::HashSet<u32>> = vec![Default::default(); trace.channels];
    let mut topics: HashMap<u32, Topic> = HashMap::new();
    let mut answers = Vec::new();
    for (row, &Row { time_s, channel, topic, sender, .. }) in trace.rows.iter().enumerate() {
        let topic = topics.entry(topic).or_default();
        if !joined[channel as usize].insert(sender)
            && let Some(to) = topic.newest_not_by(sender)
            && trace.rows[to as usize].time_s + ANSWERED_WITHIN_S >= time_s
        {
            answers.push(Answer { sender, to });
        }
        topic.posted(row as u32, sender);
    }
    answers
}

/// The newest message of a topic, and the newest by somebody other than its sender.
#[derive(Default)]
struct Topic {
    newest: Option<(u32, u32)>,
    by_another: Option<u32>,
}

impl Topic {
    fn posted(&mut self, row: u32, sender: u32) {
        if let Some((newest, by)) = self.newest
            && by != sender
        {
            self.by_another = Some(newest);
        }
        self.newest = Some((row, sender));
    }

    fn newest_not_by(&self, sender: u32) -> Option<u32> {
        match self.newest {
            Some((row, by)) if by != sender => Some(row),
            _ => self.by_another,
        }
    }
}

/// Which senders had which row's body pushed.
pub struct Reached {
    words: usize,
    bits: Vec<u64>,
}

impl Reached {
    /// Nobody has anything.
    pub fn new(trace: &Trace) -> Self {
        let words = trace.senders.div_ceil(64);
        Self { words, bits: vec![0; words * trace.rows.len()] }
    }

    /// Of no trace.
    pub fn none() -> Self {
        Self { words: 0, bits: Vec::new() }
    }

    /// A row's body reached a sender; says whether that is new.
    pub fn insert(&mut self, row: usize, sender: usize) -> bool {
        let word = &mut self.bits[row * self.words + sender / 64];
        let is_new = *word & 1 << (sender % 64) == 0;
        *word |= 1 << (sender % 64);
        is_new
    }

    /// Bodies pushed.
    pub fn count(&self) -> u64 {
        self.bits.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether a row's body reached a sender.
    pub fn has(&self, row: usize, sender: usize) -> bool {
        self.bits[row * self.words + sender / 64] & 1 << (sender % 64) != 0
    }

    /// The part of the answers whose body had been pushed to who answers.
    pub fn in_time(&self, answers: &[Answer]) -> f64 {
        let is_in_time = |answer: &&Answer| self.has(answer.to as usize, answer.sender as usize);
        answers.iter().filter(is_in_time).count() as f64 / answers.len().max(1) as f64
    }
}

/// Bodies that go to everybody: each message to every member but its sender.
pub fn untiered(trace: &Trace) -> u64 {
    let mut joined: Vec<hashbrown::HashSet<u32>> = vec![Default::default(); trace.channels];
    let others = |row: &Row| {
        let members = &mut joined[row.channel as usize];
        members.insert(row.sender);
        members.len() as u64 - 1
    };
    trace.rows.iter().map(others).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_answers_the_newest_of_others_within_a_day() {
        let row = |time_s, sender| Row { time_s, channel: 0, topic: 0, sender, bytes: 1 };
        let day = ANSWERED_WITHIN_S;
        let rows = vec![
            row(0, 0),
            row(1, 1),           // Joins with this post.
            row(2, 1),           // Answers row 0, past its own.
            row(3, 0),           // Answers row 2.
            row(4 + day, 1),     // Too late.
            row(4 + 2 * day, 0), // In the last moment.
        ];
        let trace = Trace { rows, channels: 1, senders: 2, topics: 1 };
        let answer = |sender, to| Answer { sender, to };
        assert_eq!(answers(&trace), [answer(1, 0), answer(0, 2), answer(0, 4)]);
        assert_eq!(untiered(&trace), 5);
        let mut reached = Reached::new(&trace);
        assert!(reached.insert(0, 1) && !reached.insert(0, 1) && reached.insert(4, 0) && !reached.has(4, 1));
        assert_eq!((reached.count(), reached.in_time(&answers(&trace))), (2, 2.0 / 3.0));
    }
}
