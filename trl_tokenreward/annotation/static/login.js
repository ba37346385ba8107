"use strict";

const form = document.querySelector("form");
const password = document.getElementById("password");
const problem = document.getElementById("problem");

form.addEventListener("submit", async event => {
  event.preventDefault();
  try {
    const response = await fetch("/api/login", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ password: password.value }),
    });
    if (response.ok) location.replace("/");
    else problem.textContent = (await response.json()).error;
  } catch {
    problem.textContent = "The server does not answer.";
  }
  password.select();
});
