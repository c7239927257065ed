//! Fronts that ask all the time, in virtual time: how much of what a device can
//! do they get, with others beside them and on a path that loses frames.

mod fairness;
mod loss;
mod world;
