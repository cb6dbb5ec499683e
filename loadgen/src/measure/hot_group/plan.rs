//! Who is what in `hot-group`: numbers of people, first those that are told at once, then the passive, then the absent.

use anyhow::{Result, ensure};

/// Sessions that have the channel on their screen.
const VISIBLE: usize = 8;
/// Sessions that send: of the visible ones.
const SENDERS: usize = 4;
/// One of so many sessions is active, and as many are warm.
const PART: usize = 20;
/// One of so many of the passive and the absent is in the small group.
pub const FACTOR: usize = 10;
/// One of so many passive sessions has the app on its screen: more than people look at a messenger over a day.
pub const ON_SCREEN: usize = 10;

/// What a member is meant to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Has the channel on its screen.
    Visible,
    /// In the foreground, and does much.
    Active,
    /// In the foreground, and does little.
    Warm,
    /// In the foreground, and does nothing.
    Foreground,
    /// In the background.
    Background,
    /// Has no session until the end.
    Absent,
}

impl Role {
    /// Those with sessions.
    pub const ALL: [Self; 5] = [Self::Visible, Self::Active, Self::Warm, Self::Foreground, Self::Background];

    /// How it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Visible => "visible",
            Self::Active => "active",
            Self::Warm => "warm",
            Self::Foreground => "passive_foreground",
            Self::Background => "passive_background",
            Self::Absent => "absent",
        }
    }

    /// Whether entries are to come to it by themselves.
    pub fn is_told(self) -> bool {
        matches!(self, Self::Visible | Self::Active | Self::Warm)
    }
}

/// See the module's page.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Members with a session.
    pub sessions: usize,
    /// All members.
    pub memberships: usize,
}

impl Plan {
    /// Of so many members.
    ///
    /// # Errors
    /// There are too few sessions, or more than members.
    pub fn new(sessions: usize, memberships: usize) -> Result<Self> {
        ensure!(sessions >= SENDERS * PART, "--sessions: {} at least", SENDERS * PART);
        ensure!(memberships >= sessions, "--memberships: at least as many as --sessions");
        Ok(Self { sessions, memberships })
    }

    /// Sessions that are told at once.
    pub fn front(self) -> usize {
        self.sessions / PART * 2
    }

    /// Sessions that send.
    pub fn senders(self) -> usize {
        SENDERS
    }

    /// What a number is meant to be.
    pub fn role(self, number: usize) -> Role {
        let active = self.sessions / PART;
        match number {
            _ if number < VISIBLE.min(active) => Role::Visible,
            _ if number < active => Role::Active,
            _ if number < active * 2 => Role::Warm,
            _ if number >= self.sessions => Role::Absent,
            _ if (number - active * 2).is_multiple_of(ON_SCREEN) => Role::Foreground,
            _ => Role::Background,
        }
    }

    /// Whether a number is in the small group, which has the same members up to the warm ones and a tenth of the others.
    pub fn is_in_small(self, number: usize) -> bool {
        // By tens, so that as many of them have the app on screen.
        number < self.front() || ((number - self.front()) / ON_SCREEN).is_multiple_of(FACTOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_of_most_groups() {
        let plan = Plan::new(15_000, 50_000).unwrap();
        let count = |role| (0..50_000).filter(|number| plan.role(*number) == role).count();
        assert_eq!((count(Role::Visible) + count(Role::Active), count(Role::Warm)), (750, 750));
        assert_eq!((count(Role::Foreground), count(Role::Background)), (1_350, 12_150));
        assert_eq!((count(Role::Absent), plan.front()), (35_000, 1_500));
        assert!((0..plan.senders()).all(|number| plan.role(number) == Role::Visible));
        assert!(Plan::new(20, 100).is_err() && Plan::new(1_000, 999).is_err());
    }

    #[test]
    fn the_small_group_has_all_who_are_told_and_a_tenth_of_the_others() {
        let plan = Plan::new(15_000, 50_000).unwrap();
        let small = |role| (0..50_000).filter(|n| plan.role(*n) == role && plan.is_in_small(*n)).count();
        assert_eq!((small(Role::Active), small(Role::Warm)), (742, 750));
        assert!((134..=136).contains(&small(Role::Foreground)), "{}", small(Role::Foreground));
        assert!((1_210..=1_220).contains(&small(Role::Background)));
        assert!((3_490..=3_510).contains(&small(Role::Absent)));
    }
}
