//! A decorator that asks a fault tap before and after every engine call.
