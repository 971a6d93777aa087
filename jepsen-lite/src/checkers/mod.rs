//! What must hold, judged from a history and a final look at the system. One file per property; each has tests that
//! plant the bug it exists for.

pub mod answers;
pub mod append;
pub mod single_owner;
pub mod turn;
