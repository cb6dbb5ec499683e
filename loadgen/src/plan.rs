//! What may be sent next: the trace in its order, with one unacknowledged send per sender and a bound over all. Pure.

use std::collections::VecDeque;

use crate::trace::Row;

/// Rows that may wait behind busy senders before the trace is read on; it bounds how far the replay leaves the
/// trace's order across senders.
const AHEAD_MAX: usize = 8_192;

/// What a sender has to do for a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nobody has posted in the channel yet: make the group.
    Open,
    /// The sender is not a member yet: join.
    Join,
    /// Send the message.
    Send,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ChannelStage {
    Unopened,
    Opening,
    Open,
}

/// See the module.
#[derive(Debug)]
pub struct Plan {
    rows: Vec<Row>,
    read: usize,
    ahead: usize,
    in_flight: usize,
    in_flight_max: usize,
    /// Per sender: rows that wait for it, oldest first, and whether it is busy.
    waiting: Vec<VecDeque<u32>>,
    busy: Vec<bool>,
    /// Senders that are not busy and have a row waiting.
    ready: VecDeque<u32>,
    channels: Vec<ChannelStage>,
    members: Vec<hashbrown::HashSet<u32>>,
    /// Senders that wait for a channel to be opened by another.
    parked: Vec<Vec<u32>>,
    finished: usize,
}

impl std::fmt::Debug for ChannelStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unopened => "unopened",
            Self::Opening => "opening",
            Self::Open => "open",
        })
    }
}

impl Plan {
    /// A plan for these rows, whose channels and senders are numbered densely.
    pub fn new(rows: Vec<Row>, channels: usize, senders: usize, in_flight_max: usize) -> Self {
        Self {
            rows,
            read: 0,
            ahead: 0,
            in_flight: 0,
            in_flight_max,
            waiting: vec![VecDeque::new(); senders],
            busy: vec![false; senders],
            ready: VecDeque::new(),
            channels: vec![ChannelStage::Unopened; channels],
            members: vec![hashbrown::HashSet::new(); channels],
            parked: vec![Vec::new(); channels],
            finished: 0,
        }
    }

    /// A row of the trace.
    pub fn row(&self, index: usize) -> &Row {
        &self.rows[index]
    }

    /// Rows whose message was acknowledged.
    pub fn finished(&self) -> usize {
        self.finished
    }

    /// All rows.
    pub fn total(&self) -> usize {
        self.rows.len()
    }

    /// Sends that have begun and are not acknowledged.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// When the next unread row is planned, in seconds since the trace's first.
    pub fn next_time_s(&self) -> Option<u64> {
        self.rows.get(self.read).map(|row| row.time_s - self.rows[0].time_s)
    }

    /// The next (row, step) that may begin now; rows planned after `until_s` (seconds since the trace's first) wait.
    pub fn next(&mut self, until_s: u64) -> Option<(usize, Step)> {
        if self.in_flight >= self.in_flight_max {
            return None;
        }
        loop {
            while self.ready.is_empty()
                && self.ahead < AHEAD_MAX
                && self.next_time_s().is_some_and(|time_s| time_s <= until_s)
            {
                self.read_one();
            }
            let sender = self.ready.pop_front()?;
            let index = *self.waiting[sender as usize].front()? as usize;
            let channel = self.rows[index].channel as usize;
            let step = match self.channels[channel] {
                ChannelStage::Opening => {
                    self.parked[channel].push(sender);
                    continue;
                }
                ChannelStage::Unopened => {
                    self.channels[channel] = ChannelStage::Opening;
                    Step::Open
                }
                ChannelStage::Open if self.members[channel].contains(&sender) => Step::Send,
                ChannelStage::Open => Step::Join,
            };
            self.waiting[sender as usize].pop_front();
            self.ahead -= 1;
            self.busy[sender as usize] = true;
            self.in_flight += 1;
            return Some((index, step));
        }
    }

    fn read_one(&mut self) {
        let sender = self.rows[self.read].sender;
        let waiting = &mut self.waiting[sender as usize];
        waiting.push_back(self.read as u32);
        if waiting.len() == 1 && !self.busy[sender as usize] {
            self.ready.push_back(sender);
        }
        self.read += 1;
        self.ahead += 1;
    }

    /// The sender of `index` is a member of its channel now; the row goes on with [`Step::Send`].
    pub fn joined(&mut self, index: usize) {
        let Row { channel, sender, .. } = self.rows[index];
        let channel = channel as usize;
        self.members[channel].insert(sender);
        if self.channels[channel] != ChannelStage::Open {
            self.channels[channel] = ChannelStage::Open;
            self.ready.extend(self.parked[channel].drain(..));
        }
    }

    /// The message of `index` was acknowledged: its sender is free.
    pub fn finish(&mut self, index: usize) {
        let sender = self.rows[index].sender;
        self.finished += 1;
        self.in_flight -= 1;
        self.busy[sender as usize] = false;
        if !self.waiting[sender as usize].is_empty() {
            self.ready.push_back(sender);
        }
    }

    /// Whether all is acknowledged.
    pub fn is_done(&self) -> bool {
        self.finished == self.rows.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(time_s: u64, channel: u32, sender: u32) -> Row {
        Row { time_s, channel, topic: 0, sender, bytes: 10 }
    }

    #[test]
    fn one_unacknowledged_send_per_sender_and_a_bound_over_all() {
        let rows = vec![row(0, 0, 0), row(0, 0, 0), row(0, 0, 1), row(0, 1, 2), row(5, 0, 1)];
        let mut plan = Plan::new(rows, 2, 3, 2);
        assert_eq!(plan.next(0), Some((0, Step::Open)));
        // Sender 1 waits for the channel to be opened; sender 2 opens the other.
        assert_eq!(plan.next(0), Some((3, Step::Open)));
        assert_eq!(plan.next(0), None, "two are in flight");
        plan.joined(0);
        plan.finish(0);
        let mut next = vec![plan.next(0).unwrap()];
        plan.joined(3);
        plan.finish(3);
        next.push(plan.next(0).unwrap());
        next.sort_by_key(|(index, _)| *index);
        assert_eq!(next, [(1, Step::Send), (2, Step::Join)]);
        plan.finish(1);
        plan.joined(2);
        plan.finish(2);
        assert_eq!(plan.next(4), None, "not planned yet");
        assert_eq!(plan.next(5), Some((4, Step::Send)));
        plan.finish(4);
        assert!(plan.is_done());
    }
}
