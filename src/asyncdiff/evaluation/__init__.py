"""What is measured: pictures beside the ordinary ones, a look into a division."""
