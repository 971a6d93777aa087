//! Load in a closed loop, cheap enough to share two cores with what it measures: the same client program for the gateway
//! and for etcd, and the disk below both.

pub mod disk;
pub mod etcd;
pub mod load;
