"""CPU references of Ascend's operators, and the tests of upstream's network under them."""
