#![no_main]

fuzz::target!(flags, 64);
