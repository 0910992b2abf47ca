#![no_main]

fuzz::target!(xor, 64);
