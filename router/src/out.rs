//! What a pass of a shard has for others, in the order it came about, until its worker hands it on.
//!
//! **Order.** A channel's owner answers a session and then tells the owner of its user, which ends the SYNC with a frame of its
//! own: the first must be on its way before the other owner hears. So nothing of a shard leaves before what it gave earlier
//! has left. What different shards give in one pass does not depend on each other: a worker sends the first of all shards
//! together, then the second, and mostly there is no third.

use std::{cell::RefCell, sync::Arc, vec};

use fanfare_proto::link::{Down, Downlink};

use crate::{context::Context, event::Event};

/// One thing for somebody else.
pub enum Action {
    /// For a gateway.
    Down(Arc<dyn Downlink>, Down),
    /// For that shard.
    Post(u16, Event),
    /// An answer to the server's own people.
    Answer(Box<dyn FnOnce() + Send>),
}

/// What one shard has for others.
#[derive(Default)]
pub struct Out {
    actions: RefCell<Vec<Action>>,
}

/// Places that a shard keeps for its next pass.
const ACTIONS_KEPT: usize = 8;
/// Gateways whose places a worker keeps.
const GATEWAYS_KEPT: usize = 64;

impl Out {
    /// Adds one.
    pub fn push(&self, action: Action) {
        self.actions.borrow_mut().push(action);
    }

    fn take(&self) -> Vec<Action> {
        let mut actions = self.actions.borrow_mut();
        let kept = if actions.capacity() <= ACTIONS_KEPT { actions.capacity() } else { 0 };
        std::mem::replace(&mut actions, Vec::with_capacity(kept))
    }
}

type Rest = std::iter::Peekable<vec::IntoIter<Action>>;
/// What is for one gateway, with the shards that it is from.
type Downs = (Arc<dyn Downlink>, Vec<(u16, Down)>);

/// What the shards of a worker have for others.
#[derive(Default)]
pub struct Pass {
    /// By shard, what has not left.
    rests: Vec<(u16, Rest)>,
    downs: Vec<Downs>,
    posts: Vec<(u16, Event)>,
}

impl Pass {
    /// Adds what a shard has.
    pub fn add(&mut self, owner: u16, out: &Out) {
        if !out.actions.borrow().is_empty() {
            self.rests.push((owner, out.take().into_iter().peekable()));
        }
    }

    /// Hands everything on.
    pub fn hand_on(&mut self, context: &Context) {
        while !self.rests.is_empty() {
            for (owner, rest) in &mut self.rests {
                while let Some(Action::Down(..)) = rest.peek() {
                    if let Some(Action::Down(downlink, down)) = rest.next() {
                        let known = self.downs.iter().position(|(known, _)| Arc::ptr_eq(known, &downlink));
                        match known {
                            Some(at) => self.downs[at].1.push((*owner, down)),
                            None => self.downs.push((downlink, vec![(*owner, down)])),
                        }
                    }
                }
            }
            for (downlink, downs) in &mut self.downs {
                if !downs.is_empty() {
                    downlink.send_all(downs);
                    downs.clear();
                }
            }
            for (_, rest) in &mut self.rests {
                while let Some(Action::Post(..)) = rest.peek() {
                    if let Some(Action::Post(shard, event)) = rest.next() {
                        self.posts.push((shard, event));
                    }
                }
            }
            context.post_all(self.posts.drain(..));
            for (_, rest) in &mut self.rests {
                while let Some(Action::Answer(_)) = rest.peek() {
                    if let Some(Action::Answer(answer)) = rest.next() {
                        answer();
                    }
                }
            }
            self.rests.retain_mut(|(_, rest)| rest.peek().is_some());
        }
        // A gateway that came again has another downlink.
        if self.downs.len() > GATEWAYS_KEPT {
            self.downs.clear();
        }
    }
}
