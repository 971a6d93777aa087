//! Order, exclusion and durability of turns.
//!
//! Reading order: [`live`] (the text of running turns).

pub mod live;
