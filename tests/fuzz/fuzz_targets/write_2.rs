#![no_main]

fuzz::target!(write_2, 64);
