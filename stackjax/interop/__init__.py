"""Between stackjax and the formats of others."""
