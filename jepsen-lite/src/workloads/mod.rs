//! Who asks for what: clients that keep going through every fault and record all they were told.

pub mod append;
