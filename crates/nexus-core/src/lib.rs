//! The pure part of Nexus: plain data and decisions.
//!
//! Nothing here opens a file, a socket or a process, reads a clock or draws a random number: wall
//! time, monotonic time and randomness come in as arguments. That makes every decision replayable.
#![forbid(unsafe_code)]

pub mod access;
pub mod automation;
pub mod breaker;
pub mod budget;
pub mod chunk;
pub mod circuit;
pub mod config;
pub mod doubt;
pub mod event;
pub mod health;
pub mod hook;
pub mod ids;
pub mod lane;
pub mod lifecycle;
pub mod notice;
pub mod pace;
pub mod protocol;
pub mod request;
pub mod schedule;
pub mod search;
pub mod spend;
pub mod stream;
pub mod tool_filter;
