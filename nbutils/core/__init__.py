"""What more than one stage needs; imports nothing from the floors above."""
