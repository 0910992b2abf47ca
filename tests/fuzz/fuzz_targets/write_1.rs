#![no_main]

fuzz::target!(write_1, 64);
