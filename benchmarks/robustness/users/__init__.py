"""What three kinds of users do, and what they must see: application, operations, research."""
