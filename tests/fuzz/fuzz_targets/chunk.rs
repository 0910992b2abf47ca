#![no_main]

fuzz::target!(chunk, 256);
