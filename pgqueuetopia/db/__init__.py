"""The database: the only package that imports asyncpg, and every statement the project sends."""
